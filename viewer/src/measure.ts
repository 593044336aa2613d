import type { Frame, Progressive, Timing } from "./gl/progressive";

/** Milliseconds per complete image: the median of several. */
export interface Measured {
  milliseconds: number;
  frames: number[];
}

/**
 * Time images of several frames, interleaved so that a device that slows down or speeds up favors none. Each frame draws one
 * warm-up image first.
 */
export async function measure(progressive: Progressive, frames: Frame[], turns: number): Promise<Measured[]> {
  const times: number[][] = frames.map(() => []);
  for (let turn = -1; turn < turns; turn++) {
    for (let place = 0; place < frames.length; place++) {
      const which = (place + turn + 1) % frames.length;
      const { target, timing }: { target: { delete(): void }; timing: Timing } = await progressive.picture(frames[which]);
      target.delete();
      if (turn >= 0) times[which].push(timing.milliseconds);
    }
  }
  return times.map((each) => ({ milliseconds: middle(each), frames: each }));
}

/** The median; for an even number of values, the mean of the two in the middle. */
export function middle(values: readonly number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const half = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
