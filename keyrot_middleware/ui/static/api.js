// Requests to the server beside this page; addresses are relative, so that it works at any path.

const PATIENCE_MS = 8000;

let csrfToken = "";

export class ApiError extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

export const getStatus = (filter) => request("GET", "api/status", filter);
export const getAttempts = (filter) => request("GET", "api/attempts", filter);
export const getHistory = (filter) => request("GET", "api/history", filter);
export const getExplanation = (filter) => request("GET", "api/explain", filter);

export function act(keyId, action) {
  return request("POST", `api/keys/${encodeURIComponent(keyId)}/${action}`, {}, 60000);
}

async function request(method, path, parameters, patience = PATIENCE_MS) {
  const query = new URLSearchParams(parameters).toString();
  const headers = method === "GET" ? {} : { "X-CSRF-Token": csrfToken };
  const response = await fetch(query ? `${path}?${query}` : path, {
    method,
    headers,
    cache: "no-store",
    credentials: "same-origin",
    redirect: "error",
    signal: AbortSignal.timeout(patience),
  });
  csrfToken = response.headers.get("X-CSRF-Token") ?? csrfToken;
  const content = await response.json().catch(() => null);
  if (!response.ok || content === null) {
    throw new ApiError(response.status, content?.error ?? "The server's answer is not JSON.");
  }
  return content;
}
