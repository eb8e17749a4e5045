/* Everything that talks to the daemon: calls, uploads with progress, event streams, the token. The
 * token lives in sessionStorage: this tab, until it is closed. */

const KEY = "usplit-token";

export function token() {
  return sessionStorage.getItem(KEY) || "";
}

export function setToken(value) {
  if (value) sessionStorage.setItem(KEY, value);
  else sessionStorage.removeItem(KEY);
  window.dispatchEvent(new Event("usplit-token"));
}

/* An answer that is not what was asked for, in words. */
export class Problem extends Error {
  constructor(status, body, head) {
    const said = body.detail || body.error || body.title || (typeof body.status === "string" && body.status);
    super(said || `the daemon answered with status ${status}`);
    this.status = status;
    this.requestId = body.request_id || "";
    this.retryAfter = head("Retry-After");
  }
}

function lost() {
  return new Problem(0, { detail: "the daemon does not answer; is it running?" }, () => null);
}

function problem(status, text, head) {
  let body = {};
  try {
    body = JSON.parse(text) || {};
  } catch {
    body = { detail: text.replace(/<[^>]*>/g, " ").trim().slice(0, 300) };
  }
  const p = new Problem(status, body, head);
  if (status === 401) window.dispatchEvent(new CustomEvent("usplit-401", { detail: p.message }));
  return p;
}

function headers(more) {
  return token() ? { ...more, Authorization: `Bearer ${token()}` } : { ...more };
}

/* The Response of a call that went well; else throws a Problem. */
export async function call(method, path, { json, head, signal } = {}) {
  const h = headers(head);
  if (json !== undefined) h["Content-Type"] = "application/json";
  let r;
  try {
    r = await fetch(path, { method, headers: h, signal, cache: "no-store", credentials: "omit",
      body: json === undefined ? undefined : JSON.stringify(json) });
  } catch (e) {
    throw e.name === "AbortError" ? e : lost();
  }
  if (!r.ok) throw problem(r.status, await r.text(), (n) => r.headers.get(n));
  return r;
}

export async function get(path, options) {
  return (await call("GET", path, options)).json();
}

/* Sends a file and gives {status, blob, head}. Only XMLHttpRequest tells how far an upload is.
 * on.up(done, total), on.sent(), on.down(done, total or 0). */
export function send(method, path, file, { head = {}, on = {}, signal } = {}) {
  return new Promise((resolve, reject) => {
    const x = new XMLHttpRequest();
    x.open(method, path);
    x.responseType = "blob";
    for (const [k, v] of Object.entries(headers(head))) x.setRequestHeader(k, v);
    x.upload.onprogress = (e) => on.up && on.up(e.loaded, e.total || file.size);
    x.upload.onload = () => on.sent && on.sent();
    x.onprogress = (e) => on.down && on.down(e.loaded, e.lengthComputable ? e.total : 0);
    x.onerror = () => reject(lost());
    x.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    x.onload = async () => {
      const at = (n) => x.getResponseHeader(n);
      if (x.status >= 200 && x.status < 300) resolve({ status: x.status, blob: x.response, head: at });
      else reject(problem(x.status, await x.response.text(), at));
    };
    if (signal) signal.addEventListener("abort", () => x.abort());
    x.send(file);
  });
}

/* The fields of one event of a text/event-stream. */
function parseEvent(block) {
  const e = { id: "", event: "message", data: "" };
  for (const line of block.split("\n")) {
    const at = line.indexOf(":");
    if (at > 0) e[line.slice(0, at)] = line.slice(at + 1).trimStart();
  }
  return e;
}

/* Events of a job from the one after `last` until it ends, over lost connections. EventSource could
 * not send the token. */
export async function* events(path, signal, last = "") {
  for (let wait = 500; ; wait = Math.min(2 * wait, 15000)) {
    try {
      const r = await call("GET", path, { signal, head: last ? { "Last-Event-ID": last } : {} });
      const reader = r.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let text = ""; ;) {
        const { value, done } = await reader.read();
        if (done) return;
        wait = 500;
        const blocks = (text + value).split("\n\n");
        text = blocks.pop();
        for (const e of blocks.map(parseEvent).filter((b) => b.data)) {
          last = e.id || last;
          yield { ...e, data: JSON.parse(e.data) };
        }
      }
    } catch (e) {
      if (signal.aborted || (e.status >= 400 && e.status < 500)) throw e;
    }
    await new Promise((go) => setTimeout(go, wait));
  }
}

/* What this daemon can do: "GET /metrics" in routes. */
export async function routes() {
  const index = await get("/", { head: { Accept: "application/json" } });
  return { version: index.version, has: new Set(index.routes.map((r) => `${r.method} ${r.path}`)) };
}
