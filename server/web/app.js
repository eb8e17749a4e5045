/* The page: which view is shown (the part after #), the state at the top, the access token. */
import { call, get, routes, setToken, token } from "./api.js";
import { $, fail, put, say } from "./dom.js";
import { closeJob, openJob } from "./job.js";
import { openModels, setupModels } from "./models.js";
import { fetchJobs, parseMetrics, showJobs, showTiles } from "./overview.js";
import { openSplit, setupSplit } from "./split.js";
import { openTrain, setupTrain } from "./train.js";

const EVERY_MS = 2000;
let has = new Set();
let current = "";
let refused = false; // the daemon wants a token that we have not got

/* Opens the view of the address; one of the past that is still loading notices by itself. */
function show(focus) {
  const [name, ...rest] = decodeURIComponent(location.hash.slice(1)).split("/");
  const openers = { overview: poll, split: openSplit, train: openTrain, models: openModels, job: openJob };
  current = openers[name] ? name : "overview";
  closeJob();
  for (const v of document.querySelectorAll(".view")) v.hidden = v.id !== `view-${current}`;
  for (const a of document.querySelectorAll("nav a")) {
    const here = a.hash === `#${current}` || (current === "job" && a.hash === "#overview");
    if (here) a.setAttribute("aria-current", "page");
    else a.removeAttribute("aria-current");
  }
  if (focus) {
    $(`h-${current}`).focus({ preventScroll: true });
    scrollTo(0, 0);
  }
  openers[current](rest.join("/"));
}

function health(kind, text) {
  $("health").className = `health ${kind}`;
  put($("health-text"), text);
}

async function readiness() {
  try {
    const ready = await get("/readyz");
    health("ready", ready.running + ready.waiting > 0 ? "busy" : "ready");
    return ready;
  } catch (e) {
    health(e.status ? "wait" : "down", e.status ? e.message : "no answer");
    return null;
  }
}

async function memory() {
  if (!has.has("GET /metrics")) return null;
  try {
    return parseMetrics(await (await call("GET", "/metrics")).text());
  } catch {
    return null;
  }
}

/* What the overview shows. Each part stands alone: a token may allow one and not the other. */
async function poll() {
  const ready = await readiness();
  if (!ready || refused || current !== "overview") return;
  const jobs = fetchJobs().then((list) => {
    showJobs(list, poll);
    return list;
  }, (e) => {
    fail($("jobs-error"), e);
    return null;
  });
  const models = get("/v1/models").then((r) => r.models, () => null);
  const [list, m, metrics] = await Promise.all([jobs, models, memory()]);
  const count = (state) => (list ? list.filter((j) => j.state === state).length : undefined);
  showTiles({ ...ready, jobs_running: count("running"), jobs_queued: count("queued") }, metrics, m);
  const n = count("running");
  document.title = n ? `${n} running · usplit` : "usplit";
}

function askToken(why) {
  if ($("token-dialog").open) return;
  put($("token-why"), why || "Kept in this tab only and forgotten when it is closed.");
  $("token-input").value = token();
  $("token-dialog").showModal();
  $("token-input").focus();
}

function setupToken() {
  const d = $("token-dialog");
  $("token-open").onclick = () => askToken();
  $("token-close").onclick = () => d.close();
  $("token-forget").onclick = () => {
    setToken("");
    d.close();
  };
  $("token-form").onsubmit = () => setToken($("token-input").value.trim());
  window.addEventListener("usplit-401", (e) => {
    refused = true;
    askToken(`${e.detail[0].toUpperCase()}${e.detail.slice(1)}.`);
  });
  window.addEventListener("usplit-token", () => {
    refused = false;
    put($("token-open"), token() ? "Token in use" : "Access token");
    say(token() ? "token in use" : "no token");
    show(false);
  });
  put($("token-open"), token() ? "Token in use" : "Access token");
}

async function start() {
  setupToken();
  setupSplit();
  setupTrain();
  setupModels();
  $("skip").onclick = (e) => {
    e.preventDefault();
    $("main").focus();
  };
  $("chart-licence").hidden = !window.Chart;
  try {
    const index = await routes();
    has = index.has;
    put($("about"), `usplitd ${index.version}`);
  } catch (e) {
    health("down", e.message);
  }
  window.addEventListener("hashchange", () => show(true));
  show(false);
  if (current !== "overview") readiness();
  setInterval(() => {
    if (document.hidden) return;
    if (current === "overview") poll();
    else readiness();
  }, EVERY_MS);
}

start();
