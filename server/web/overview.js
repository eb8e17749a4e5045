/* The first view: is the daemon well, what is it doing, and the jobs. */
import { get } from "./api.js";
import { $, bytes, duration, el, facts, fail, put, when } from "./dom.js";
import { actions, share, where } from "./job.js";

const rows = new Map(); // job id -> {tr, cells, state}

/* Values of Prometheus' text by name; labels are summed over. */
export function parseMetrics(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const m = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)/.exec(line);
    if (m) found[m[1]] = (found[m[1]] || 0) + Number(m[3]);
  }
  return found;
}

export function showTiles(ready, metrics, models) {
  const n = (x) => (x == null ? "–" : String(x));
  const list = [["Computes on", ready.device || ready.backend || "–", ready.device ? ready.backend : ""],
    ["Predictions", n(ready.running), `${n(ready.waiting)} waiting`],
    ["Training jobs", n(ready.jobs_running), ready.jobs_queued == null ? "" : `${ready.jobs_queued} queued`],
    ["Models in memory", models ? String(models.filter((m) => m.state === "loaded").length) : "–",
      models ? `of ${models.length}` : ""]];
  const rss = metrics && metrics.process_resident_memory_bytes;
  if (rss) list.push(["Memory", bytes(rss), "of the daemon"]);
  const gpu = metrics && metrics.usplit_device_memory_bytes;
  if (gpu) list.push(["Device memory", bytes(gpu), ""]);
  facts($("tiles"), list);
}

function newRow(job) {
  const link = el("a", { href: `#job/${job.id}` });
  const bar = el("progress", { max: 1, "aria-label": `Progress of ${job.model}` });
  const c = { pill: el("span", { class: "pill" }), why: el("span", { class: "why" }), link, bar,
    text: el("span"), from: el("td"), left: el("td", { class: "num" }), made: el("td", { class: "when" }),
    acts: el("td", { class: "acts" }) };
  const tr = el("tr", {}, el("td", {}, c.pill), el("td", {}, link, c.why), c.from,
    el("td", { class: "prog" }, c.text, bar), c.left, c.made, c.acts);
  return { tr, c, state: "" };
}

function showRow(row, job, again) {
  const c = row.c, part = share(job);
  put(c.pill, job.state);
  c.pill.className = `pill ${job.state}`;
  put(c.why, job.reason || "");
  put(c.link, job.model || job.type);
  put(c.from, job.dataset || "");
  put(c.text, where(job));
  put(c.left, duration((job.progress || {}).seconds_left));
  put(c.made, when(job.created));
  if (isNaN(part)) c.bar.removeAttribute("value");
  else c.bar.value = part;
  c.bar.hidden = job.state !== "running" && job.state !== "paused";
  if (row.state === job.state) return;
  row.state = job.state;
  const list = actions(job, (e) => fail($("jobs-error"), e), again);
  c.acts.replaceChildren(...list.flatMap((b, i) => (i ? [" ", b] : [b])));
}

export function showJobs(jobs, again) {
  const body = $("jobs").tBodies[0];
  const alive = new Set(jobs.map((j) => j.id));
  for (const [id, row] of rows) {
    if (alive.has(id)) continue;
    row.tr.remove();
    rows.delete(id);
  }
  jobs.forEach((job, i) => {
    if (!rows.has(job.id)) rows.set(job.id, newRow(job));
    const row = rows.get(job.id);
    showRow(row, job, again);
    if (body.children[i] !== row.tr) body.insertBefore(row.tr, body.children[i] || null);
  });
  $("jobs").hidden = jobs.length === 0;
  $("jobs-empty").hidden = jobs.length > 0;
  fail($("jobs-error"), null);
}

export async function fetchJobs() {
  return (await get("/v1/jobs")).jobs;
}
