/* The models: what each is and where it comes from, into memory and out of it, add, fetch, remove. */
import { call, get, send } from "./api.js";
import { $, bytes, button, confirmed, droppable, el, facts, fail, number, say } from "./dom.js";
import { download } from "./job.js";

const cards = new Map(); // name -> {card, key}

function variantOf(a) {
  if (!a) return "";
  const kind = a.stochastic === false ? "HAE" : "HVAE";
  return `${kind}, ${a.z_dims.length} levels, ${a.lc_scales > 1 ? `${a.lc_scales} input scales` : "no lateral context"}, ${a.n_filters} filters`;
}

function summary(m) {
  const meta = m.metadata || {}, data = meta.data || {}, p = meta.provenance || {};
  const parts = [variantOf(meta.architecture), (data.channels || []).join(" + "), m.parameters && `${number(m.parameters)} parameters`,
    bytes(m.file_bytes || 0), p.val_psnr != null && `validation PSNR ${number(p.val_psnr, 3)} dB`];
  return m.error || parts.filter(Boolean).join(" · ");
}

function details(m) {
  const meta = m.metadata || {}, data = meta.data || {}, dl = el("dl", { class: "facts" });
  const rows = [["SHA-256", m.sha256 || "–"], ["Patch", `${meta.patch_size || "–"} pixels`],
    ["Mixing", typeof data.mixing === "string" ? data.mixing : JSON.stringify(data.mixing || "–")],
    ["Input", `mean ${number(data.input_mean)}, std ${number(data.input_std)}`],
    ["Clip", [].concat(data.clip == null ? [] : data.clip).map((c) => number(c)).join(", ") || "–"],
    ["Pixel size", data.pixel_size_um ? `${[].concat(data.pixel_size_um).map((x) => number(x)).join(" × ")} µm` : "not stated"],
    ["Can be trained on", m.trainable ? "yes" : "no"]];
  for (const [k, v] of Object.entries(meta.provenance || {}))
    rows.push([k.replace(/_/g, " "), typeof v === "number" ? number(v, 5) : typeof v === "string" ? v : JSON.stringify(v)]);
  facts(dl, rows);
  return el("details", {}, el("summary", {}, "Details and provenance"), dl);
}

async function act(method, m, tail, text) {
  try {
    await call(method, `/v1/models/${encodeURIComponent(m.name)}${tail}`);
    say(text);
    fail($("models-error"), null);
  } catch (e) {
    fail($("models-error"), e);
  }
  openModels();
}

async function remove(m) {
  if (await confirmed(`Delete the model ${m.name}? Its file is removed from the daemon for good.`))
    act("DELETE", m, "", `${m.name} deleted`);
}

function cardOf(m) {
  const loaded = m.state === "loaded";
  const list = [];
  if (m.state !== "broken") {
    list.push(el("a", { href: `#split/${m.name}` }, "Use"),
      button(loaded ? "Unload" : "Load", () => act("POST", m, loaded ? "/unload" : "/load", loaded ? "unloaded" : "loaded"),
        { "aria-label": `${loaded ? "Unload" : "Load"} ${m.name}` }),
      button("Download", () => download(`/v1/models/${encodeURIComponent(m.name)}/file`, `${m.name}.safetensors`, $("models-error")),
        { "aria-label": `Download ${m.name}` }));
  }
  list.push(button("Delete", () => remove(m), { class: "small danger", "aria-label": `Delete ${m.name}` }));
  return el("article", { class: "card" }, el("header", {}, el("h2", {}, m.name), el("span", { class: `pill ${m.state}` }, m.state),
    el("span", { class: "actions" }, ...list)), el("p", { class: "sum" }, summary(m)), m.metadata ? details(m) : null);
}

/* A card is made anew only when its model changed: what somebody has open stays open. */
export async function openModels() {
  let models;
  try {
    models = (await get("/v1/models")).models;
  } catch (e) {
    fail($("models-error"), e);
    return;
  }
  const alive = new Set(models.map((m) => m.name));
  for (const [name, c] of cards) {
    if (alive.has(name)) continue;
    c.card.remove();
    cards.delete(name);
  }
  models.forEach((m, i) => {
    const key = `${m.state} ${m.sha256} ${m.error}`, old = cards.get(m.name);
    if (!old || old.key !== key) {
      const card = cardOf(m);
      if (old) old.card.replaceWith(card);
      cards.set(m.name, { card, key });
    }
    const card = cards.get(m.name).card;
    if ($("models").children[i] !== card) $("models").insertBefore(card, $("models").children[i] || null);
  });
  $("models-empty").hidden = models.length > 0;
  if (models.some((m) => m.state === "unchecked")) setTimeout(openModels, 500);
}

async function add(e) {
  e.preventDefault();
  const file = $("model-file").files[0], name = $("model-name").value.trim();
  if (!file || !name) return;
  fail($("model-error"), null);
  const bar = $("model-progress");
  bar.hidden = false;
  try {
    await send("PUT", `/v1/models/${encodeURIComponent(name)}`, file, {
      head: { "Content-Type": "application/octet-stream", ...($("model-replace").checked ? {} : { "If-None-Match": "*" }) },
      on: { up: (done, total) => { bar.value = done / total; } } });
    say(`${name} added`);
    $("model-form").reset();
  } catch (error) {
    if (error.status === 412) error.message = `There is a model ${name} already; tick the box to replace it.`;
    fail($("model-error"), error);
  }
  bar.hidden = true;
  openModels();
}

export function setupModels() {
  $("model-form").onsubmit = add;
  droppable($("model-file").closest("label"), $("model-file"));
  $("model-file").onchange = () => {
    const file = $("model-file").files[0];
    if (file && !$("model-name").value) $("model-name").value = file.name.replace(/\.safetensors$/, "").replace(/[^\w.-]/g, "-");
  };
}
