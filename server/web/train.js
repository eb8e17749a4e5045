/* Train: the data sets, and a form made from the daemon's own table of settings. The daemon checks
 * what is sent; what it refuses is shown at the field that it names. */
import { call, get, send } from "./api.js";
import { $, bytes, confirmed, droppable, el, fail, put, say } from "./dom.js";

const COMMON = ["architecture.variant", "architecture.n_filters", "patch_size", "training.batch", "training.max_epochs",
  "training.max_steps", "training.lr", "training.seed"];
const LABELS = { "architecture.variant": "Variant", "architecture.n_filters": "Filters", patch_size: "Patch",
  "training.batch": "Batch", "training.max_epochs": "Epochs", "training.max_steps": "Steps", "training.lr": "Learning rate",
  "training.seed": "Seed" };
const NEW = "";
let settings = null; // as /ui/settings.json has them
let inputs = new Map(); // key -> input

/* ---- data sets --- */

async function listFiles() {
  const name = $("data-set").value, table = $("data-list");
  $("data-new-field").hidden = name !== NEW;
  $("data-delete").hidden = name === NEW;
  if (name === NEW) {
    table.replaceChildren();
    return;
  }
  try {
    const d = await get(`/v1/datasets/${encodeURIComponent(name)}`);
    const shape = (f) => f.error || (f.shape ? [["t", "frames"], ["z", "slices"], ["c", "channels"]].filter(([k]) => f.shape[k] > 1)
      .map(([k, t]) => `${f.shape[k]} ${t}`).concat(`${f.shape.w} × ${f.shape.h}`).join(", ") : "splits");
    table.replaceChildren(el("thead", {}, el("tr", {}, el("th", {}, "File"), el("th", {}, "Holds"), el("th", { class: "num" }, "Size"), el("th", {}, el("span", { class: "sr" }, "Actions")))),
      el("tbody", {}, ...d.files.map((f) => el("tr", {}, el("td", {}, f.name), el("td", {}, shape(f)), el("td", { class: "num" }, bytes(f.bytes)),
        el("td", { class: "num" }, el("button", { type: "button", class: "small danger", "aria-label": `Remove ${f.name}`, onclick: () => removeFile(name, f.name) }, "Remove"))))));
    fail($("data-error"), null);
  } catch (e) {
    fail($("data-error"), e);
  }
}

async function removeFile(set, file) {
  if (!(await confirmed(`Remove ${file} from the data set ${set}?`, "Remove"))) return;
  try {
    await call("DELETE", `/v1/datasets/${encodeURIComponent(set)}/images/${encodeURIComponent(file)}`);
    await openTrain(set);
  } catch (e) {
    fail($("data-error"), e);
  }
}

async function removeSet() {
  const set = $("data-set").value;
  if (!(await confirmed(`Delete the data set ${set} with all its images? Models trained on it stay.`))) return;
  try {
    await call("DELETE", `/v1/datasets/${encodeURIComponent(set)}`);
    say(`${set} deleted`);
    await openTrain();
  } catch (e) {
    fail($("data-error"), e);
  }
}

async function upload(set, file) {
  const bar = el("progress", { max: 1, value: 0, "aria-label": `Upload of ${file.name}` }), text = el("span", {}, `${file.name}, ${bytes(file.size)}`);
  const row = el("li", {}, text, bar);
  $("data-uploads").append(row);
  const splits = file.name === "splits.json";
  const path = `/v1/datasets/${encodeURIComponent(set)}/${splits ? "" : "images/"}${encodeURIComponent(file.name)}`;
  try {
    await send("PUT", path, file, { head: { "Content-Type": splits ? "application/json" : "application/octet-stream" },
      on: { up: (done, total) => { bar.value = done / total; }, sent: () => bar.removeAttribute("value") } });
    row.remove();
    return true;
  } catch (e) {
    bar.remove();
    row.append(el("div", { class: "error" }, e.message));
    return false;
  }
}

/* One after the other: a lab's line is filled by one, and errors stay with their file. */
async function uploadAll() {
  const files = [...$("data-files").files];
  const set = $("data-set").value || $("data-name").value.trim();
  if (!files.length) return;
  fail($("data-error"), null);
  $("data-uploads").replaceChildren();
  if (!set) {
    fail($("data-error"), new Error("Give the new data set a name first."));
    $("data-files").value = "";
    $("data-name").focus();
    return;
  }
  let n = 0;
  for (const file of files.sort((a, b) => (a.name === "splits.json") - (b.name === "splits.json"))) n += await upload(set, file);
  $("data-files").value = "";
  say(`${n} of ${files.length} files stored`);
  await openTrain(n > 0 || $("data-set").value ? set : undefined);
}

/* ---- settings --- */

function inputFor(s) {
  const id = `set-${s.key}`, hint = JSON.stringify(s.default).replace(/^"|"$/g, "");
  if (s.kind === "word" || s.kind === "flag") {
    const words = s.kind === "word" ? s.words.split("|") : ["true", "false"];
    return el("select", { id }, el("option", { value: "" }, `${hint} (default)`), ...words.filter((w) => w !== hint).map((w) => el("option", { value: w }, w)));
  }
  return el("input", { id, type: "text", placeholder: hint, inputmode: s.kind === "int" ? "numeric" : "text" });
}

function fieldFor(s) {
  const input = inputFor(s);
  inputs.set(s.key, input);
  input.setAttribute("aria-describedby", `err-${s.key}`);
  return el("label", { class: "field", title: s.allowed }, LABELS[s.key] || s.key.replace(/^\w+\./, "").replace(/_/g, " "), input,
    el("small", {}, s.text), el("span", { class: "field-error", id: `err-${s.key}`, hidden: true }));
}

function buildForm() {
  const by = new Map(settings.map((s) => [s.key, s]));
  $("train-common").replaceChildren(...COMMON.filter((k) => by.has(k)).map((k) => fieldFor(by.get(k))));
  const rest = settings.filter((s) => !COMMON.includes(s.key) && s.key !== "name");
  const sections = [...new Set(rest.map((s) => s.key.split(".")[0]))];
  $("train-all").replaceChildren(...sections.flatMap((name) => [el("h2", {}, name[0].toUpperCase() + name.slice(1)),
    el("div", { class: "grid" }, ...rest.filter((s) => s.key.split(".")[0] === name).map(fieldFor))]));
}

/* The value of a field as JSON: numbers and lists as such, else as text. */
function parsed(s, text) {
  if (s.kind === "text" || s.kind === "word") return text;
  try {
    return JSON.parse(text);
  } catch {
    return text; // the daemon says what it expected
  }
}

function merge(into, from) {
  for (const [k, value] of Object.entries(from)) {
    const both = value && typeof value === "object" && !Array.isArray(value) && into[k] && typeof into[k] === "object";
    if (both) merge(into[k], value);
    else into[k] = value;
  }
  return into;
}

function config() {
  const c = {};
  for (const s of settings) {
    const text = inputs.has(s.key) ? inputs.get(s.key).value.trim() : "";
    if (text === "") continue;
    const [section, name] = s.key.includes(".") ? s.key.split(".") : ["", s.key];
    const at = section ? (c[section] ||= {}) : c;
    at[name] = parsed(s, text);
  }
  const json = $("train-json").value.trim();
  return json ? merge(c, JSON.parse(json)) : c;
}

function clearErrors() {
  fail($("train-error"), null);
  $("train-json-error").hidden = true;
  for (const [key, input] of inputs) {
    input.removeAttribute("aria-invalid");
    $(`err-${key}`).hidden = true;
  }
}

/* The error at the field of the setting that it names, else above the button. */
function showError(e) {
  const text = e.message || "";
  const key = [...inputs.keys()].sort((a, b) => b.length - a.length).find((k) => new RegExp(`(^|[^\\w.])${k.replace(".", "\\.")}\\b`).test(text));
  if (key && e.status === 422) {
    const input = inputs.get(key), box = $(`err-${key}`);
    if (!COMMON.includes(key)) $("train-more").open = true;
    input.setAttribute("aria-invalid", "true");
    put(box, text);
    box.hidden = false;
    input.focus();
    return;
  }
  fail($("train-error"), e);
}

async function submit(event) {
  event.preventDefault();
  clearErrors();
  let c;
  try {
    c = config();
  } catch (e) {
    $("train-json-box").open = true;
    put($("train-json-error"), `This is no JSON: ${e.message}`);
    $("train-json-error").hidden = false;
    $("train-json").focus();
    return;
  }
  const dataset = $("data-set").value, model = $("train-model").value.trim();
  if (!dataset || !model) {
    fail($("train-error"), new Error(dataset ? "Give the model a name." : "Choose or fill a data set first."));
    return;
  }
  $("train-go").disabled = true;
  try {
    const body = { type: "train", dataset, model, config: c };
    if ($("train-replace").checked) body.replace = true;
    const r = await call("POST", "/v1/jobs", { json: body, head: { "Idempotency-Key": crypto.randomUUID ? crypto.randomUUID() : `${Date.now()}-${Math.random()}` } });
    location.hash = `#job/${(await r.json()).id}`;
  } catch (e) {
    showError(e);
  }
  $("train-go").disabled = false;
}

export async function openTrain(chosen) {
  const select = $("data-set"), keep = chosen || select.value;
  try {
    if (!settings) {
      settings = (await get("/ui/settings.json")).settings;
      buildForm();
    }
    const sets = (await get("/v1/datasets")).datasets;
    select.replaceChildren(...sets.map((d) => el("option", { value: d.name }, d.in_use ? `${d.name} (in use)` : d.name)), el("option", { value: NEW }, "new data set …"));
    select.value = sets.some((d) => d.name === keep) ? keep : sets.length ? sets[0].name : NEW;
    await listFiles();
  } catch (e) {
    fail($("data-error"), e);
  }
}

export function setupTrain() {
  $("data-set").onchange = listFiles;
  $("data-files").onchange = uploadAll;
  $("data-delete").onclick = removeSet;
  $("train-form").onsubmit = submit;
  droppable($("data-drop"), $("data-files"));
}
