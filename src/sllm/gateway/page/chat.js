// The chat page: the Ollama API of the server that it came from, and nothing else.

const one = (id) => document.getElementById(id);
const REFRESH_MS = 5000;
const RATE_WINDOW_MS = 2000;

let turns = [];
let running = null;
let token = sessionStorage.getItem("token") ?? "";

async function call(path, options = {}) {
  for (;;) {
    const headers = { "Content-Type": "application/json" };
    if (token) headers.Authorization = `Bearer ${token}`;
    const reply = await fetch(path, { ...options, headers });
    if (reply.ok) return reply;
    if (reply.status === 401) {
      await login();
      continue;
    }
    let said = `${reply.status} ${reply.statusText}`;
    try {
      said = (await reply.json()).error ?? said;
    } catch {
      // No JSON: the status says it.
    }
    throw new Error(said);
  }
}

let asking = null;
function login() {
  asking ??= new Promise((done) => {
    const dialog = one("login");
    dialog.addEventListener("close", () => {
      token = one("token").value;
      sessionStorage.setItem("token", token);
      asking = null;
      done();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (count >= 1000 && at < units.length - 1) [count, at] = [count / 1000, at + 1];
  return `${count.toFixed(count < 10 && at ? 1 : 0)} ${units[at]}`;
}

function place(model) {
  if (!model.size_vram) return `in host memory, ${bytes(model.size)}`;
  if (model.size_vram >= model.size) return `on the GPU, ${bytes(model.size)}`;
  const share = Math.round((100 * model.size_vram) / model.size);
  return `${share} % of ${bytes(model.size)} on the GPU, the rest streamed`;
}

async function refresh() {
  const [tags, loaded] = await Promise.all(
    ["api/tags", "api/ps"].map(async (path) => (await (await call(path)).json()).models),
  );
  const chosen = one("model").value || localStorage.getItem("model");
  const names = tags.map((model) => model.name);
  const shown = [...one("model").options].map((option) => option.value);
  if (names.join("\n") !== shown.join("\n")) {
    one("model").replaceChildren(...tags.map((model) => new Option(
      `${model.name} (${model.details.quantization_level || model.details.format}, ${bytes(model.size)})`,
      model.name, false, model.name === chosen)));
  }
  const here = loaded.find((model) => model.name === one("model").value);
  one("unload").disabled = !here || Boolean(running);
  one("send").disabled = !names.length || Boolean(running);
  if (!names.length) one("where").textContent = "No models yet: gdsllm pull smollm2:135m";
  else if (!here) one("where").textContent = "On disk: it is loaded with the first question.";
  else {
    const until = new Date(here.expires_at);
    const kept = until.getFullYear() > 2200 ? "kept loaded"
      : `unloaded at ${until.toLocaleTimeString()} if it is not used`;
    one("where").textContent = `Loaded: ${place(here)}, ${here.context_length} tokens of context, ${kept}.`;
  }
}

async function watch() {
  for (;;) {
    if (!document.hidden) {
      await refresh().catch((error) => { one("where").textContent = `No answer from the server: ${error.message}`; });
    }
    await new Promise((done) => setTimeout(done, REFRESH_MS));
  }
}

// Text is only ever set as text. Code and bold words get their elements, all else stays as it is.
function show(element, text) {
  const parts = [];
  text.split(/^```[^\n]*\n?/m).forEach((part, index) => {
    if (index % 2) {
      const pre = document.createElement("pre");
      const code = document.createElement("code");
      code.textContent = part;
      pre.append(code);
      parts.push(pre);
      return;
    }
    for (const piece of part.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
      const kind = piece.length < 3 ? null : piece.startsWith("`") ? "code" : piece.startsWith("**") ? "strong" : null;
      const node = kind ? document.createElement(kind) : document.createTextNode("");
      const marks = { code: 1, strong: 2 }[kind] ?? 0;
      node.textContent = piece.slice(marks, piece.length - marks);
      parts.push(node);
    }
  });
  element.replaceChildren(...parts);
}

function addTurn(role) {
  one("turns").querySelector(".empty")?.remove();
  const turn = document.createElement("article");
  turn.className = `turn ${role}`;
  const text = document.createElement("div");
  text.className = "text";
  turn.append(text);
  one("turns").append(turn);
  return { turn, text };
}

function clear() {
  running?.abort();
  turns = [];
  const empty = document.createElement("p");
  empty.className = "empty";
  empty.textContent = "What would you like to know?";
  one("turns").replaceChildren(empty);
  one("rate").textContent = "";
  one("question").focus();
}

function options() {
  const chosen = {};
  for (const [id, name] of [["temperature", "temperature"], ["tokens", "num_predict"], ["seed", "seed"]]) {
    if (one(id).value !== "") chosen[name] = Number(one(id).value);
  }
  return chosen;
}

async function* lines(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) break;
    const cut = (held + value).split("\n");
    held = cut.pop();
    for (const line of cut) if (line.trim()) yield JSON.parse(line);
  }
  if (held.trim()) yield JSON.parse(held);
}

class Rate {
  #times = [];
  note() {
    const now = performance.now();
    this.#times.push(now);
    while (now - this.#times[0] > RATE_WINDOW_MS) this.#times.shift();
    const span = now - this.#times[0];
    if (span > 100) one("rate").textContent = `${(((this.#times.length - 1) * 1000) / span).toFixed(1)} tokens/s`;
  }
}

function summary(last) {
  if (!last.eval_duration) return "";
  const rate = (last.eval_count * 1e9) / last.eval_duration;
  const prompt = last.prompt_eval_duration ? `prompt ${last.prompt_eval_count} tokens in ${(last.prompt_eval_duration / 1e9).toFixed(2)} s, ` : "";
  const loaded = last.load_duration > 1e8 ? `loaded in ${(last.load_duration / 1e9).toFixed(2)} s, ` : "";
  return `${loaded}${prompt}${last.eval_count} tokens at ${rate.toFixed(1)} tokens/s`;
}

async function answer() {
  const { turn, text } = addTurn("assistant");
  turn.classList.add("waiting");
  const message = { role: "assistant", content: "" };
  let thought = null;
  const rate = new Rate();
  const asked = turns;  // A new chat has turns of its own.
  const system = one("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), ...turns];
  running = new AbortController();
  const body = JSON.stringify({ model: one("model").value, messages, options: options() });
  try {
    const reply = await call("api/chat", { method: "POST", body, signal: running.signal });
    for await (const line of lines(reply)) {
      if (line.error) throw new Error(line.error);
      const { content, thinking } = line.message;
      if (thinking) {
        if (!thought) {
          thought = document.createElement("details");
          thought.className = "thinking";
          thought.append(Object.assign(document.createElement("summary"), { textContent: "Thinking" }));
          thought.append(document.createElement("div"));
          turn.prepend(thought);
        }
        thought.lastChild.append(thinking);
      }
      message.content += content ?? "";
      const bottom = innerHeight + scrollY >= document.body.scrollHeight - 40;
      show(text, message.content);
      if (bottom) scrollTo(0, document.body.scrollHeight);
      if (asked !== turns) continue;
      if (line.done) one("rate").textContent = summary(line);
      else rate.note();
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      turn.append(Object.assign(document.createElement("p"), { className: "failed", textContent: error.message }));
    }
  } finally {
    turn.classList.remove("waiting");
    if (message.content) asked.push(message);
    else asked.pop();  // A question without an answer is not part of the conversation.
    running = null;
  }
}

async function ask(event) {
  event?.preventDefault();
  const question = one("question").value.trim();
  if (!question || running || !one("model").value) return;
  one("question").value = "";
  turns.push({ role: "user", content: question });
  show(addTurn("user").text, question);
  one("send").hidden = one("unload").disabled = true;
  one("stop").hidden = false;
  await answer();
  one("send").hidden = false;
  one("stop").hidden = true;
  one("question").focus();
  await refresh().catch(() => {});  // The next one comes in a moment, and says what is wrong.
}

one("ask").addEventListener("submit", ask);
one("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) ask(event);
});
one("stop").addEventListener("click", () => running?.abort());
one("clear").addEventListener("click", clear);
one("model").addEventListener("change", () => {
  localStorage.setItem("model", one("model").value);
  refresh().catch(() => {});
});
one("unload").addEventListener("click", async () => {
  const body = JSON.stringify({ model: one("model").value, messages: [], keep_alive: 0 });
  await call("api/chat", { method: "POST", body }).catch((error) => { one("where").textContent = error.message; });
  await refresh().catch(() => {});
});
clear();
watch();
