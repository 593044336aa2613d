import { fitted, type Lens, type Pose } from "../camera/camera";
import { contextLost } from "./context";
import type { FieldRenderer, Look } from "./fieldRenderer";
import { Screen, Target } from "./target";

/** The content that the canvas should show. */
export interface Frame {
  renderer: FieldRenderer;
  pose: Pose;
  /** Lens of the canvas at its full resolution. */
  lens: Lens;
  look: Look;
}

/** The size of a complete image and the time that it took. */
export interface Timing {
  milliseconds: number;
  width: number;
  height: number;
}

// Target time of an image while the camera moves, and of a slice of work while it is still.
const MOVING_MS = 40;
const SLICE_MS = 30;
const SMALLEST_SCALE = 1 / 16;
// An image at this fraction of the resolution precedes the full one, unless a smaller one is all that the time allows.
const FIRST_SCALE = 1 / 4;

/**
 * Keeps the canvas showing the latest frame: coarse images at once, full ones when nothing changes. Work is done in slices, so
 * that the page stays responsive, and stops when everything is drawn.
 */
export class Progressive {
  /** Called after each complete image at full resolution. */
  onFinished: (frame: Frame, timing: Timing) => void = () => undefined;
  /** Called when drawing fails. */
  onError: (error: unknown) => void = () => undefined;

  private readonly coarse: Target;
  private readonly fine: Target;
  private frame: Frame | undefined;
  private moving = false;
  private scheduled = false;
  // What the canvas shows, and the smallest fraction of the resolution at which a part of it was drawn.
  private shown: { frame: Frame; scale: number } | undefined;
  // Rows of the fine image from `undone` on are drawn; null: nothing of the frame is drawn yet.
  private undone: number | null = null;
  private spent = 0;
  private readonly cost = new Map<string, number>(); // milliseconds per pixel

  private constructor(
    private readonly gl: WebGL2RenderingContext,
    private readonly screen: Screen,
  ) {
    this.coarse = new Target(gl);
    this.fine = new Target(gl);
  }

  static async create(gl: WebGL2RenderingContext): Promise<Progressive> {
    return new Progressive(gl, await Screen.create(gl));
  }

  /**
   * Show another frame. While `moving`, only coarse images are drawn. The first one is drawn in the browser's next animation
   * frame, or before this call returns if `now` is set and its shader is ready, for a canvas that has just lost its image.
   */
  show(frame: Frame, moving: boolean, now = false): void {
    this.frame = frame;
    this.moving = moving;
    this.undone = null;
    if (now) this.shown = undefined;
    this.schedule();
    if (now && frame.renderer.isPrepared(frame.look.mode)) this.try();
  }

  /** Draw an image off the canvas, in slices, and time it. */
  async picture(frame: Frame): Promise<{ target: Target; timing: Timing }> {
    await frame.renderer.prepare(frame.look.mode);
    const target = new Target(this.gl);
    const { width, height } = frame.lens;
    let milliseconds = 0;
    let undone = height;
    while (undone > 0) {
      if (this.gl.isContextLost()) throw contextLost();
      const slice = this.slice(frame, target, undone);
      undone = slice.undone;
      milliseconds += slice.milliseconds;
      await new Promise((resolve) => setTimeout(resolve));
    }
    return { target, timing: { milliseconds, width, height } };
  }

  private schedule(): void {
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame(() => {
      this.scheduled = false;
      this.try();
    });
  }

  private try(): void {
    this.step().catch((error: unknown) => {
      this.onError(error);
    });
  }

  private async step(): Promise<void> {
    const { frame, gl } = this;
    if (frame === undefined || this.undone === 0) return;
    if (gl.isContextLost()) throw contextLost();
    if (!frame.renderer.isPrepared(frame.look.mode)) {
      await frame.renderer.prepare(frame.look.mode);
      this.schedule();
      return;
    }
    if (this.undone === null) {
      this.undone = frame.lens.height;
      this.spent = 0;
      const affordable = this.affordableScale(frame);
      if (this.moving) {
        this.drawCoarse(frame, Math.min(affordable, 1));
        return;
      }
      if (affordable >= 1) {
        this.drawFine(frame, Infinity);
        return;
      }
      const scale = Math.min(affordable, FIRST_SCALE);
      // After a movement the canvas often shows the frame already; a coarser image would only make it flicker.
      if (this.shown === undefined || this.shown.scale < scale || !isSame(this.shown.frame, frame)) this.drawCoarse(frame, scale);
      this.schedule();
    } else if (!this.moving) {
      this.drawFine(frame, SLICE_MS);
    }
  }

  private drawCoarse(frame: Frame, scale: number): void {
    const { lens } = frame;
    const [width, height] = [lens.width, lens.height].map((size) => Math.max(1, Math.round(size * scale)));
    const small = { ...frame, lens: { ...fitted(lens, width, height), width, height } };
    for (let rest = height; rest > 0; ) rest = this.slice(small, this.coarse, rest, Infinity).undone;
    this.screen.show(this.coarse, lens);
    this.shown = { frame, scale };
  }

  /** Draw the next rows of the full image, as many as fit into the given time, or all of them if it is infinite. */
  private drawFine(frame: Frame, milliseconds: number): void {
    const { width, height } = frame.lens;
    let undone = this.undone ?? height;
    do {
      const slice = this.slice(frame, this.fine, undone, milliseconds);
      undone = slice.undone;
      this.spent += slice.milliseconds;
    } while (undone > 0 && milliseconds === Infinity);
    this.undone = undone;
    this.screen.show(this.fine, frame.lens, undone / height);
    if (undone > 0) {
      this.schedule();
      return;
    }
    this.shown = { frame, scale: 1 };
    this.onFinished(frame, { milliseconds: this.spent, width, height });
  }

  /** The fraction of the resolution at which an image takes as long as one may while the camera moves. */
  private affordableScale(frame: Frame): number {
    const cost = this.cost.get(this.key(frame));
    // Without a measured time, assume that drawing is slow.
    if (cost === undefined) return SMALLEST_SCALE;
    return Math.max(Math.sqrt(MOVING_MS / (cost * frame.lens.width * frame.lens.height)), SMALLEST_SCALE);
  }

  /** Draw more rows below `undone`, as many as fit into the given time. */
  private slice(frame: Frame, target: Target, undone: number, milliseconds = SLICE_MS): { undone: number; milliseconds: number } {
    const { width, height } = frame.lens;
    const key = this.key(frame);
    const cost = this.cost.get(key);
    const rows = cost === undefined ? 2 : Math.floor(Math.min(milliseconds / (cost * width), height));
    // Devices draw blocks of 2 x 2 pixels, so a single row would cost as much as two.
    const from = Math.max(0, 2 * Math.floor((undone - Math.max(rows, 2) + 1) / 2));
    const begin = performance.now();
    target.bind(width, height);
    frame.renderer.draw(frame.pose, frame.lens, frame.look, from, undone);
    target.finish();
    const spent = performance.now() - begin;
    const perPixel = Math.max(spent, 0.01) / ((undone - from) * width);
    // Rows differ, so the estimate decreases slowly but increases at once: a slice that is too long is worse than one that is
    // too short. Above a scene there may be many rows of empty sky.
    this.cost.set(key, cost === undefined || perPixel > cost ? perPixel : 0.9 * cost + 0.1 * perPixel);
    return { undone: from, milliseconds: spent };
  }

  private known = 0;
  private readonly keys = new WeakMap<FieldRenderer, number>();
  private key({ renderer, look }: Frame): string {
    let number = this.keys.get(renderer);
    if (number === undefined) {
      number = this.known++;
      this.keys.set(renderer, number);
    }
    return `${number} ${look.mode} ${look.stepFactor}`;
  }
}

function isSame(a: Frame, b: Frame): boolean {
  return a.renderer === b.renderer && JSON.stringify([a.pose, a.lens, a.look]) === JSON.stringify([b.pose, b.lens, b.look]);
}
