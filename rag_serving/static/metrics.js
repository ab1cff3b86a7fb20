// Figures from the server's Prometheus text. Pure: no network, no document.

const SEARCH_ROUTES = new Set(["/search", "/batch_search", "/retrieve", "/queries"]);

/** [{name, labels, value}, …] of the text; lines of another shape are left out. */
export function parseMetrics(text) {
  const samples = [];
  for (const line of text.split("\n")) {
    const match = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$/.exec(line);
    if (!match) continue;
    const labels = {};
    for (const [, key, value] of (match[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)) labels[key] = value;
    samples.push({ name: match[1], labels, value: Number(match[3].replace("Inf", "Infinity")) });
  }
  return samples;
}

/** The figures of one sample of /metrics; a figure that the server does not give is null. */
export function readSample(text, seconds) {
  const samples = parseMetrics(text);
  const sum = (name, keep = () => true) => {
    const found = samples.filter((sample) => sample.name === name && keep(sample.labels));
    return found.length ? found.reduce((total, { value }) => total + value, 0) : null;
  };
  const buckets = new Map();
  for (const { name, labels, value } of samples) {
    if (name !== "rag_request_seconds_bucket" || !SEARCH_ROUTES.has(labels.route)) continue;
    const bound = Number(labels.le.replace("Inf", "Infinity"));
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return {
    seconds,
    queries: sum("rag_queries_total"),
    buckets,
    queue: sum("rag_queue_queries"),
    queueLimit: sum("rag_queue_limit"),
    hits: sum("rag_cache_hits_total"),
    misses: sum("rag_cache_misses_total"),
    retrievers: sum("rag_retrievers"),
    available: sum("rag_retrievers_available"),
  };
}

/** The figures between two samples: {qps, p50, p99, cacheShare}; a figure that cannot be known is null. */
export function figuresBetween(older, newer) {
  const seconds = newer.seconds - older.seconds;
  const delta = (key) => (newer[key] === null ? null : newer[key] - (older[key] ?? 0));
  const queries = delta("queries");
  // Counters that fall belong to a server that has started again.
  if (!(seconds > 0) || queries < 0) return { qps: null, p50: null, p99: null, cacheShare: null };
  const counts = [...newer.buckets].map(([bound, count]) => [bound, count - (older.buckets.get(bound) ?? 0)]);
  const hits = delta("hits");
  const looked = hits === null ? 0 : hits + (delta("misses") ?? 0);
  return {
    qps: queries === null ? null : queries / seconds,
    p50: quantile(counts, 0.5),
    p99: quantile(counts, 0.99),
    cacheShare: looked > 0 ? hits / looked : null,
  };
}

/** The quantile of cumulative [bound, count] pairs, even within a bucket; Infinity beyond the last bound. */
export function quantile(cumulative, share) {
  const counts = [...cumulative].sort((a, b) => a[0] - b[0]);
  const rank = share * (counts.at(-1)?.[1] ?? 0);
  if (!(rank > 0)) return null;
  let [lowerBound, lowerCount] = [0, 0];
  for (const [bound, count] of counts) {
    if (count >= rank) return lowerBound + (bound - lowerBound) * ((rank - lowerCount) / (count - lowerCount));
    [lowerBound, lowerCount] = [bound, count];
  }
  return null;
}

export function formatSeconds(seconds) {
  if (seconds === null) return "–";
  if (!Number.isFinite(seconds)) return "off the scale";
  const ms = seconds * 1000;
  if (ms >= 10_000) return `${seconds.toFixed(0)} s`;
  if (ms >= 1000) return `${seconds.toFixed(1)} s`;
  return ms >= 10 ? `${ms.toFixed(0)} ms` : `${ms.toFixed(1)} ms`;
}
