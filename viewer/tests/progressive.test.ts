import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { poseOf } from "../src/camera/camera";
import type { FieldRenderer } from "../src/gl/fieldRenderer";
import { type Frame, Progressive } from "../src/gl/progressive";
import { scene } from "./fixture";

/** A graphics device that accepts everything and draws nothing. */
function device(): WebGL2RenderingContext {
  const answers: Record<string, unknown> = {
    isContextLost: () => false,
    getExtension: () => null,
    getProgramParameter: () => true,
    checkFramebufferStatus: () => "FRAMEBUFFER_COMPLETE",
  };
  return new Proxy({}, {
    get: (_, name: string) => answers[name] ?? (name === name.toUpperCase() ? name : () => ({})),
  }) as WebGL2RenderingContext;
}

let time = 0;
let frames: (() => void)[] = [];

beforeEach(() => {
  [time, frames] = [0, []];
  vi.spyOn(performance, "now").mockImplementation(() => time);
  vi.stubGlobal("requestAnimationFrame", (callback: () => void) => frames.push(callback));
});

afterEach(() => {
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
});

const WIDTH = 200;
const HEIGHT = 100;

/** A canvas on a device that takes this many milliseconds for an image. */
async function canvas(milliseconds: number) {
  const drawn: number[] = []; // the width of what was drawn, for each slice
  const renderer = {
    isPrepared: () => true,
    draw: (_pose: unknown, lens: { width: number }, _look: unknown, from: number, to: number) => {
      drawn.push(lens.width);
      time += (milliseconds * (to - from) * lens.width) / (WIDTH * HEIGHT);
    },
  } as unknown as FieldRenderer;
  const progressive = await Progressive.create(device());
  let finished = 0;
  progressive.onFinished = () => finished++;
  progressive.onError = (error) => {
    throw error;
  };
  const pose = poseOf(scene.views[0]);
  const at = (x: number): Frame => ({
    renderer,
    pose: { ...pose, position: [x, 0, 0] },
    lens: { fx: 100, fy: 100, cx: 100, cy: 50, width: WIDTH, height: HEIGHT },
    look: { mode: "color", stepFactor: 1, background: [0, 0, 0], depthRange: [0, 1] },
  });
  /** Show a frame, draw until nothing is left to do, and return the widths of what was drawn. */
  const show = async (x: number, moving: boolean) => {
    progressive.show(at(x), moving);
    while (frames.length > 0) {
      frames.shift()!();
      await Promise.resolve();
    }
    return drawn.splice(0);
  };
  for (let step = 0; step < 200; step++) await show(-1 - step, true); // until the device's speed is known
  return { show, finished: () => finished };
}

it("draws only full images where the device is fast enough", async () => {
  const { show, finished } = await canvas(10);
  expect(await show(1, true)).toEqual([WIDTH]);
  expect(await show(1, false)).toEqual([WIDTH]);
  expect(await show(2, false)).toEqual([WIDTH]);
  expect(finished()).toBe(2);
});

it("draws nothing coarser when a movement ends", async () => {
  const { show, finished } = await canvas(100);
  const [moving] = await show(1, true);
  expect(moving).toBeGreaterThan(0.5 * WIDTH);
  expect(moving).toBeLessThan(WIDTH);
  const resting = await show(1, false);
  expect(Math.min(...resting)).toBe(WIDTH);
  expect(resting.length).toBeGreaterThan(1); // slices
  expect(finished()).toBe(1);
});

it("begins another view with a coarse image", async () => {
  const { show } = await canvas(100);
  await show(1, true);
  const [first, ...rest] = await show(2, false);
  expect(first).toBe(WIDTH / 4);
  expect(Math.min(...rest)).toBe(WIDTH);
});

it("does not draw the same image twice from the start", async () => {
  const { show } = await canvas(1000);
  expect((await show(1, false))[0]).toBeLessThan(WIDTH / 4);
  expect(Math.min(...(await show(1, false)))).toBe(WIDTH);
});
