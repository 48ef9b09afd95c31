// Requests to the server. The token, if there is one, comes with the page's address and stays in this tab.

export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status; // 0: the server does not answer
  }
}

let token = sessionStorage.getItem("token");
if (location.hash.startsWith("#token=")) {
  setToken(decodeURIComponent(location.hash.slice("#token=".length)));
  history.replaceState(null, "", location.pathname);
}

export function setToken(given) {
  token = given;
  sessionStorage.setItem("token", given);
}

async function request(path, body, signal) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const method = body === undefined ? "GET" : "POST";
  let answer;
  try {
    answer = await fetch(path, { method, headers, body: JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError(0, "The server does not answer.");
  }
  if (!answer.ok) {
    const said = await answer.json().catch(() => null);
    throw new ServerError(answer.status, said?.error?.message ?? `The server answers with ${answer.status}.`);
  }
  return answer;
}

// The JSON that a path has. With a body, it is sent there.
export async function ask(path, body) {
  return (await request(path, body)).json();
}

// The events of a stream, one by one: for await (const event of stream("v1/completions", {…}, signal)).
export async function* stream(path, body, signal) {
  const answer = await request(path, { ...body, stream: true }, signal);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new ServerError(0, "The server has gone in the middle of the text.");
    }
    if (part.done) throw new ServerError(0, "The server has gone in the middle of the text.");
    const events = (left + part.value).split("\n\n");
    left = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ServerError(500, parsed.error.message);
      yield parsed;
    }
  }
}
