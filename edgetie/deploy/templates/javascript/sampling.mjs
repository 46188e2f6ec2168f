/* Selects the next token, as edgetie generate does. */

export class Sampler {
  /** `temperature`: 0 always selects the most likely token, 1 samples as the model learned.
      `top_k`: draw among the most likely tokens. `top_p`: among those that together reach this
      probability. `repetition_penalty`: above 1 makes tokens that occurred before less likely.
      `seed`: the same one draws the same tokens. */
  constructor({ temperature, top_k, top_p, repetition_penalty, seed }) {
    Object.assign(this, { temperature, top_k: top_k ?? Infinity, top_p: top_p ?? 1 });
    this.penalty = repetition_penalty;
    const checks = {
      "temperature must be 0 or more": this.temperature >= 0,
      "top_k must be 1 or more": this.top_k >= 1,
      "top_p must be above 0 and at most 1": this.top_p > 0 && this.top_p <= 1,
      "repetition_penalty must be above 0": this.penalty > 0,
      "seed must be 0 or more": seed === undefined || (Number.isInteger(seed) && seed >= 0),
    };
    for (const [problem, valid] of Object.entries(checks)) if (!valid) throw new Error(problem);
    this.state = BigInt(seed ?? Math.floor(Math.random() * 2 ** 53));
    this.random(); // the first numbers of neighbouring seeds are alike
    this.seen = new Set(); // tokens that occurred
  }

  /** Selects a token by the logits of all, which are changed. */
  select(logits) {
    if (this.penalty !== 1)
      for (const token of this.seen) logits[token] *= logits[token] > 0 ? 1 / this.penalty : this.penalty;
    let best = 0;
    for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
    return this.temperature === 0 ? best : this.#draw(logits, logits[best]);
  }

  #draw(logits, highest) {
    const weights = Float64Array.from(logits, (logit) => Math.exp((logit - highest) / this.temperature));
    const limited = this.top_k < weights.length, ordered = limited || this.top_p < 1;
    let candidates = ordered ? mostLikelyFirst(weights) : weights.keys();
    let whole = weights.reduce((sum, weight) => sum + weight);
    if (limited) {
      candidates = Array.from({ length: this.top_k }, () => candidates.next().value);
      whole = candidates.reduce((sum, token) => sum + weights[token], 0);
    }
    const kept = [];
    let sum = 0;
    for (const token of candidates) {
      kept.push(token);
      sum += weights[token];
      if (sum >= this.top_p * whole) break;
    }
    let left = this.random() * sum, index = 0;
    while (index + 1 < kept.length && (left -= weights[kept[index]]) >= 0) index++;
    return kept[index];
  }

  /** A number from 0 up to 1, of Knuth's linear congruential generator MMIX. */
  random() {
    this.state = BigInt.asUintN(64, this.state * 6364136223846793005n + 1442695040888963407n);
    return Number(this.state >> 11n) / 2 ** 53;
  }
}

/* Yields tokens in the order of their weights, from a heap that is sorted only so far. */
function* mostLikelyFirst(weights) {
  const heap = Int32Array.from(weights.keys());
  const sink = (at, count) => {
    for (let child; (child = 2 * at + 1) < count; at = child) {
      if (child + 1 < count && weights[heap[child + 1]] > weights[heap[child]]) child++;
      if (weights[heap[at]] >= weights[heap[child]]) return;
      [heap[at], heap[child]] = [heap[child], heap[at]];
    }
  };
  for (let at = heap.length >> 1; at-- > 0; ) sink(at, heap.length);
  for (let count = heap.length; count > 0; ) {
    yield heap[0];
    heap[0] = heap[--count];
    sink(0, count);
  }
}
