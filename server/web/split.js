/* Split an image: the form, the upload and the wait, then the result. One request gives the OME-TIFF
 * that is downloaded and shown; nothing is computed twice. */
import { get, send, token } from "./api.js";
import { $, bytes, droppable, duration, el, facts, fail, number, put, save, say } from "./dom.js";
import { omeOf, openImage, preview } from "./image.js";
import { showViewer } from "./viewer.js";

const FIELDS = ["padding", "samples", "seed", "grid", "channel", "mix", "pages", "dtype"];
let busy = null; // AbortController of the request under way
let result = null; // {blob, name, input, output, ome, head, query, model}

export async function openSplit(model) {
  const select = $("split-model"), keep = model || select.value;
  try {
    const models = (await get("/v1/models")).models.filter((m) => m.state !== "broken");
    select.replaceChildren(...models.map((m) => el("option", { value: m.name }, m.name)));
    if (models.some((m) => m.name === keep)) select.value = keep;
    if (!models.length) select.append(el("option", { value: "" }, "no models yet"));
    fail($("split-error"), null);
  } catch (e) {
    fail($("split-error"), e);
  }
}

function query() {
  const q = new URLSearchParams();
  for (const f of FIELDS) {
    const value = $(`split-${f}`).value.trim();
    if (value !== "") q.set(f, value);
  }
  return q.toString();
}

/* The number of requests before ours, told while we wait. */
function watchQueue(began) {
  const timer = setInterval(async () => {
    if (document.hidden) return;
    const r = await get("/readyz").catch(() => null);
    const waiting = r ? Math.max(0, r.waiting) : 0;
    if (busy) put($("split-state"), `computing, ${duration((Date.now() - began) / 1000)}${waiting ? `; ${waiting} requests wait` : ""}`);
  }, 1000);
  return () => clearInterval(timer);
}

function working(on) {
  $("split-go").disabled = on;
  $("split-cancel").hidden = !on;
  $("split-work").hidden = !on;
  if (on) {
    $("split-progress").value = 0;
    put($("split-state"), "sending");
  }
}

function progressOf(text, stop) {
  return (done, total) => {
    stop();
    if (total) $("split-progress").value = done / total;
    put($("split-state"), `${text} ${bytes(done)}${total ? ` of ${bytes(total)}` : ""}`);
  };
}

async function request(file, model, q) {
  let stop = () => {};
  const type = /\.npy$/i.test(file.name) ? "application/x-npy" : "image/tiff";
  try {
    return await send("POST", `/v1/models/${encodeURIComponent(model)}/predict${q && `?${q}`}`, file, {
      head: { "Content-Type": type, Accept: "image/tiff" }, signal: busy.signal,
      on: { up: progressOf("sending", stop), down: (d, t) => progressOf("receiving", stop)(d, t),
        sent: () => {
          $("split-progress").removeAttribute("value");
          put($("split-state"), "computing");
          say("sent, computing");
          stop = watchQueue(Date.now());
        } } });
  } finally {
    stop();
  }
}

/* Which pages of the input make frame f of the result; the daemon knows its axes, we go by counts. */
function inputPages(f) {
  const per = Math.max(1, Math.floor(result.input.pages / result.ome.frames));
  const pick = new URLSearchParams(result.query);
  const wanted = (pick.get("mix") || pick.get("channel") || "0").split(",").map(Number);
  return wanted.filter((c) => c < per).map((c) => f * per + c);
}

async function layersOf(f) {
  const layers = [], n = result.ome.channels.length;
  if (result.input) {
    const pages = inputPages(f);
    const name = pages.length > 1 ? "Input (mean of its channels)" : "Input";
    layers.push({ name, ...(await preview(result.input, pages)) });
  }
  for (let c = 0; c < n; c++)
    layers.push({ name: result.ome.channels[c], channel: true, ...(await preview(result.output, [f * n + c])) });
  if (layers[0].w !== layers[layers.length - 1].w || layers[0].h !== layers[layers.length - 1].h) layers.shift();
  return layers;
}

function advice() {
  const head = result.head, out = [];
  const seam = Number(head("X-Usplit-Seam-Score")), clipped = Number(head("X-Usplit-Clipped-Pixels"));
  const pixels = result.output.width * result.output.height * result.ome.frames;
  if (seam > 3) out.push(`Tile borders may be visible (seam score ${number(seam, 3)}). Try shifted grids with 16 samples, or more padding.`);
  if (clipped > pixels / 100) out.push(`${number((100 * clipped) / pixels, 2)} % of the pixels are brighter than anything the model was trained on.`);
  return out.map((t) => el("p", { class: "note" }, t));
}

/* The same request for a script. */
function curl() {
  const auth = token() ? " -H \"Authorization: Bearer $TOKEN\"" : "";
  return `curl --data-binary @'${result.name.replace(/'/g, "'\\''")}' -H 'Content-Type: image/tiff'${auth} \\\n` +
    `  -o split.ome.tif '${location.origin}/v1/models/${result.model}/predict${result.query && `?${result.query}`}'`;
}

function about() {
  const h = result.head, dl = el("dl", { class: "facts" });
  const ms = /compute;dur=([\d.]+)/.exec(h("Server-Timing") || "");
  facts(dl, [["Size", `${result.output.width} × ${result.output.height}, ${result.ome.frames} frame${result.ome.frames > 1 ? "s" : ""}`],
    ["Model", h("X-Usplit-Model") || result.model], ["Seed", h("X-Usplit-Seed") || "–"], ["Padding", h("X-Usplit-Padding") || "–"],
    ["Samples", h("X-Usplit-Samples") || "–"], ["Clipped pixels", h("X-Usplit-Clipped-Pixels") || "–"],
    ["Seam score", h("X-Usplit-Seam-Score") || "–"], ["Computed in", ms ? duration(Number(ms[1]) / 1000) : "–"]]);
  return el("details", {}, el("summary", {}, "How it was made"), dl, el("pre", {}, curl()));
}

async function showFrame(f) {
  const layers = await layersOf(f);
  const download = el("button", { type: "button", class: "primary", id: "v-save", onclick: () =>
    save(result.blob, `${result.name.replace(/(\.ome)?\.[^.]+$/, "")}.split.ome.tif`) }, `Download (${bytes(result.blob.size)})`);
  const extra = [];
  if (result.ome.frames > 1) {
    const frame = el("input", { type: "number", min: 1, max: result.ome.frames, value: f + 1, id: "v-frame" });
    frame.onchange = () => showFrame(Math.min(result.ome.frames, Math.max(1, frame.valueAsNumber || 1)) - 1).catch(unseen);
    extra.push(el("label", { class: "field" }, `Frame of ${result.ome.frames}`, frame));
  }
  extra.push(el("div", { class: "actions" }, download));
  const notes = advice();
  if (!result.input) notes.push(el("p", { class: "note" }, `The input is not shown: ${result.why}.`));
  if (layers[0].factor > 1) notes.push(el("p", { class: "empty" }, `Shown at 1/${layers[0].factor} of its size; the file has all pixels.`));
  showViewer($("viewer"), layers, extra, [...notes, about()]);
}

function unseen(e) {
  fail($("split-error"), new Error(`The result is there, but not shown: ${e.message}.`));
}

async function show(file, r, model, q) {
  result = { blob: r.blob, head: r.head, name: file.name, model, query: q, input: null, why: "" };
  $("split-empty").hidden = true;
  try {
    result.input = await openImage(file);
  } catch (e) {
    result.why = e.message;
  }
  result.output = await openImage(r.blob);
  result.ome = omeOf(result.output);
  await showFrame(0);
  say("the result is shown");
}

async function submit(e) {
  e.preventDefault();
  const file = $("split-file").files[0], model = $("split-model").value, q = query();
  fail($("split-error"), null);
  if (busy || !file || !model) {
    if (!model) fail($("split-error"), new Error("There is no model yet: train one or add a file under Models."));
    return;
  }
  busy = new AbortController();
  working(true);
  try {
    const r = await request(file, model, q);
    put($("split-state"), "drawing");
    await show(file, r, model, q).catch(unseen);
  } catch (error) {
    if (error.name !== "AbortError") fail($("split-error"), error);
    else say("cancelled");
  } finally {
    busy = null;
    working(false);
  }
}

export function setupSplit() {
  $("split-form").onsubmit = submit;
  $("split-cancel").onclick = () => busy && busy.abort();
  droppable($("split-drop"), $("split-file"));
}
