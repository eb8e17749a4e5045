/* One job: what it is doing, its curves live, and what can be done to it. */
import { call, events, get, token } from "./api.js";
import { curves } from "./curves.js";
import { $, button, confirmed, duration, el, facts, fail, number, put, save, say, when } from "./dom.js";

export const ENDED = new Set(["succeeded", "failed", "cancelled"]);
const LOG_ROWS = 200;
const REFRESH_MS = 2500;

let view = null; // what is open: {id, stop, loss, psnr, epochs}

/* Share done of the whole job, 0..1; NaN: not known. */
export function share(job) {
  const p = job.progress;
  if (job.state === "succeeded") return 1;
  if (!p) return job.state === "running" ? NaN : 0;
  const t = (job.config || {}).training || {};
  const parts = p.epoch_total > 0 ? (p.epoch + p.epoch_done / p.epoch_total) : p.epoch;
  const byStep = t.max_steps > 0 ? p.step / t.max_steps : 0;
  const byEpoch = t.max_epochs > 0 ? parts / t.max_epochs : 0;
  if (p.total > 0) return Math.min(1, p.done / p.total);
  return byStep || byEpoch ? Math.min(1, Math.max(byStep, byEpoch)) : NaN;
}

/* "epoch 3, step 1,200" */
export function where(job) {
  const p = job.progress;
  if (job.state === "queued" && job.queue_position) return `position ${job.queue_position} in the queue`;
  if (!p) return job.state === "running" ? "reading the data" : "";
  if (p.total > 0) return `${number(p.done)} of ${number(p.total)}`;
  return `epoch ${number((p.epoch || 0) + 1)}, step ${number(p.step || 0)}`;
}

/* Buttons for what a job allows now; done is called afterwards. */
export function actions(job, box, done) {
  const ask = async (method, tail, text) => {
    try {
      await call(method, `/v1/jobs/${job.id}${tail}`);
      say(text);
      box(null);
    } catch (e) {
      box(e);
    }
    done();
  };
  const train = job.type === "train";
  const list = [];
  if (train && (job.state === "running" || job.state === "queued"))
    list.push(button("Pause", () => ask("POST", "/pause", "pausing")));
  if (job.state === "paused") list.push(button("Resume", () => ask("POST", "/resume", "back in the queue")));
  if (!ENDED.has(job.state)) {
    list.push(button("Cancel", async () => {
      if (await confirmed(`Cancel the job for model ${job.model}? Its last checkpoint is kept.`, "Cancel job"))
        ask("DELETE", "", "cancelling");
    }, { class: "small danger", "aria-label": `Cancel job of ${job.model}` }));
  }
  return list;
}

/* A link may carry no token, so with one the file is fetched first. */
export async function download(path, name, box) {
  try {
    if (!token()) el("a", { href: path, download: name }).click();
    else save(await (await call("GET", path)).blob(), name);
  } catch (e) {
    fail(box, e);
  }
}

function addEpoch(d) {
  const table = $("epochs");
  if (view.epochs.has(d.epoch)) return;
  if (!view.epochs.size) {
    table.replaceChildren(el("thead", {}, el("tr", {}, ...["Epoch", "Step", "Loss", "Validation loss", "PSNR, dB", "Rate"]
      .map((t) => el("th", { class: "num" }, t)))), el("tbody"));
  }
  view.epochs.add(d.epoch);
  const cells = [d.epoch + 1, d.step, d.loss, d.val_loss, d.val_psnr, d.lr];
  table.lastChild.prepend(el("tr", {}, ...cells.map((c) => el("td", { class: "num" }, number(c)))));
}

/* One line of the history or one event. */
function addPoint(kind, d) {
  if (kind === "step" || kind === "epoch") view.loss.add("loss", d.step, d.loss);
  if (kind !== "epoch") return;
  view.loss.add("val", d.step, d.val_loss);
  view.psnr.add("mean", d.step, d.val_psnr);
  (d.val_psnr_channel || []).slice(0, 3).forEach((v, i) => view.psnr.add(`c${i}`, d.step, v));
  addEpoch(d);
}

function logLine(kind, d) {
  const texts = { state: () => `${d.state}${d.reason ? `: ${d.reason}` : ""}`,
    note: () => d.note, checkpoint: () => `checkpoint at step ${number(d.step)}`,
    epoch: () => `epoch ${d.epoch + 1}: validation PSNR ${number(d.val_psnr)} dB${d.best ? ", the best so far" : ""}` };
  if (!texts[kind]) return;
  const text = texts[kind]();
  $("job-log").prepend(el("li", {}, text));
  if ($("job-log").children.length > LOG_ROWS) $("job-log").lastChild.remove();
  if (kind === "state") say(`job ${text}`);
}

function passText(d) {
  return d.pass && d.pass_total > 0 ? `${d.pass}: ${Math.round((100 * d.pass_done) / d.pass_total)} %` : d.pass || "";
}

function showJob(job) {
  const m = job.metrics || {}, p = job.progress || {};
  put($("h-job"), `${job.model || job.type}`);
  facts($("job-tiles"), [
    ["State", job.state, where(job)], ["Time left", duration(p.seconds_left) || "–", when(job.started) && `started ${when(job.started)}`],
    ["Speed", p.patches_per_s ? `${number(p.patches_per_s, 3)}/s` : "–", "patches"],
    ["Loss", number(m.loss), m.val_loss == null ? "" : `validation ${number(m.val_loss)}`],
    ["Best PSNR", m.best_val_psnr == null ? "–" : `${number(m.best_val_psnr)} dB`, "validation"],
    ["Data set", job.dataset || "–", job.attempts > 1 ? `begun ${job.attempts} times` : ""]]);
  const part = share(job), bar = $("job-progress");
  if (isNaN(part)) bar.removeAttribute("value");
  else bar.value = part;
  bar.hidden = ENDED.has(job.state);
  if (job.reason) put($("job-note"), job.reason);
  else if (ENDED.has(job.state) || job.state === "queued") put($("job-note"), "");
  put($("job-config"), JSON.stringify(job.config || {}, null, 2));
  if (view.shown === job.state) return;
  view.shown = job.state;
  const box = (e) => fail($("job-error"), e);
  const list = actions(job, box, refresh);
  if (job.state === "succeeded" && job.type === "train") {
    list.push(el("a", { href: `#split/${job.model}` }, "Split an image with it"),
      button("Download model", () => download(`/v1/jobs/${job.id}/result`, `${job.model}.safetensors`, $("job-error"))));
  }
  $("job-actions").replaceChildren(...list);
}

/* Answers may overtake each other: an older one than what is shown is dropped. */
async function refresh() {
  const mine = view;
  if (!mine) return null;
  const turn = ++mine.asked;
  try {
    const job = await get(`/v1/jobs/${mine.id}`, { signal: mine.stop.signal });
    if (view === mine && turn > mine.answered) {
      mine.answered = turn;
      showJob(job);
    }
    fail($("job-error"), null);
    return job;
  } catch (e) {
    if (view === mine && e.name !== "AbortError") fail($("job-error"), e);
    return null;
  }
}

async function history(mine) {
  const text = await (await call("GET", `/v1/jobs/${mine.id}/metrics`, { signal: mine.stop.signal })).text();
  for (const line of text.split("\n").filter((t) => t.endsWith("}"))) {
    const d = JSON.parse(line);
    if (view === mine) addPoint(d.event, d);
  }
}

/* The history first, then events as they come; a stream that ends before the job is opened anew. */
async function follow(mine) {
  let last = "";
  await history(mine);
  for (;;) {
    for await (const e of events(`/v1/jobs/${mine.id}/events`, mine.stop.signal, last)) {
      if (view !== mine) return;
      last = e.id;
      addPoint(e.event, e.data);
      logLine(e.event, e.data);
      if (e.event === "progress") put($("job-note"), passText(e.data));
      else if (e.event === "step") put($("job-note"), "");
      if (e.event === "state") refresh();
    }
    const job = await refresh();
    if (job && ENDED.has(job.state)) return;
    await new Promise((go) => setTimeout(go, 1000));
    if (view !== mine) return;
  }
}

export async function openJob(id) {
  closeJob();
  const series = [{ key: "loss", label: "training", faint: true }, { key: "val", label: "validation" }];
  const psnr = [{ key: "mean", label: "mean" }, ...["c0", "c1", "c2"].map((key, i) => ({ key, label: `channel ${i + 1}` }))];
  const mine = view = { id, stop: new AbortController(), epochs: new Set(), shown: "", asked: 0, answered: 0 };
  for (const box of ["epochs", "job-log", "job-actions"]) $(box).replaceChildren();
  for (const text of ["job-note", "job-config"]) put($(text), "");
  fail($("job-error"), null);
  const job = await refresh();
  if (view !== mine) return;
  const n = job && job.metrics && job.metrics.val_psnr_channel ? job.metrics.val_psnr_channel.length : 2;
  mine.loss = curves($("curve-loss"), "Loss", "", series);
  mine.psnr = curves($("curve-psnr"), "Validation PSNR", "dB", psnr.slice(0, 1 + Math.min(n, 3)));
  mine.timer = setInterval(() => document.hidden || ENDED.has(mine.shown) || refresh(), REFRESH_MS);
  if (!job || job.type !== "train") return;
  follow(mine).catch((e) => view === mine && e.name !== "AbortError" && fail($("job-error"), e));
}

export function closeJob() {
  if (!view) return;
  view.stop.abort();
  clearInterval(view.timer);
  if (view.loss) view.loss.free();
  if (view.psnr) view.psnr.free();
  view = null;
}
