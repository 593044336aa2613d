import { isTaken, label } from "../ui/keys";
import { inFront, moved, orbit, type Lens, type Pose } from "./camera";
import { length, subtract, type Vec3 } from "./vector";

/** The effect of dragging. */
export type Drag = "orbit" | "look";

/** The controlled camera, and what draws its images. */
export interface Controlled {
  pose: Pose;
  /** Point that the camera orbits around. */
  center: Vec3;
  vertical: Vec3;
  /** Smallest distance to the center; whoever moves closer pushes the center ahead. */
  closest: number;
  drag: Drag;
  /** Lens of the canvas, in CSS pixels. */
  lens(): Lens;
  /** The pose has changed, and more changes may follow. */
  changed(): void;
  /** The movement has ended. */
  rested(): void;
  /** Make the point of the scene at a position on the canvas (CSS pixels) the center. */
  pick(x: number, y: number): void;
}

const TURN_PER_PIXEL = Math.PI / 700;
const TURN_PER_SECOND = Math.PI / 3;
const WHEEL_STEP = 1.0015;
// Of a pixel, a line and a page, in the order of WheelEvent's deltaMode.
const WHEEL_PIXELS = [1, 30, 600];
/** The camera counts as at rest after this time without input. */
export const REST_MS = 180;

/** The motion caused by a key while it is pressed. */
interface Motion {
  move?: Vec3;
  turn?: [number, number];
}

// By physical position, independent of the keyboard layout.
const PLACES: Readonly<Partial<Record<string, Motion>>> = {
  KeyW: { move: [0, 0, 1] },
  KeyS: { move: [0, 0, -1] },
  KeyA: { move: [-1, 0, 0] },
  KeyD: { move: [1, 0, 0] },
  KeyE: { move: [0, 1, 0] },
  KeyQ: { move: [0, -1, 0] },
  ArrowLeft: { turn: [-1, 0] },
  ArrowRight: { turn: [1, 0] },
  ArrowUp: { turn: [0, 1] },
  ArrowDown: { turn: [0, -1] },
};
// By the sign on the key; = and _ share keys with + and - on many keyboards.
const SIGNS: Readonly<Partial<Record<string, Motion>>> = {
  "+": { move: [0, 0, 1] },
  "=": { move: [0, 0, 1] },
  "-": { move: [0, 0, -1] },
  _: { move: [0, 0, -1] },
};

/** Whether the key in a place moves the camera, whatever letter a keyboard layout has there. */
export function movesBy(code: string): boolean {
  return code.startsWith("Key") && PLACES[code] !== undefined;
}

/** Moves a camera by mouse, touch and keys. */
export class Controls {
  private readonly pointers = new Map<number, PointerEvent>();
  private readonly pressed = new Map<string, Motion>(); // by the key's physical position
  private fast = false;
  private rest: ReturnType<typeof setTimeout> | undefined;
  private lastTick: number | undefined;

  constructor(
    canvas: HTMLCanvasElement,
    private readonly camera: Controlled,
  ) {
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
    });
    canvas.addEventListener("pointermove", (event) => {
      this.drag(event);
    });
    for (const end of ["pointerup", "pointercancel"] as const) {
      canvas.addEventListener(end, (event) => {
        this.pointers.delete(event.pointerId);
      });
    }
    canvas.addEventListener("contextmenu", (event) => {
      event.preventDefault();
    });
    canvas.addEventListener("dblclick", (event) => {
      camera.pick(event.offsetX, event.offsetY);
    });
    canvas.addEventListener(
      "wheel",
      (event) => {
        event.preventDefault();
        this.dolly(WHEEL_STEP ** (-WHEEL_PIXELS[event.deltaMode] * event.deltaY));
        this.change();
      },
      { passive: false },
    );
    window.addEventListener("keydown", (event) => {
      this.fast = event.shiftKey;
      if (isTaken(event) || event.defaultPrevented) return;
      const motion = SIGNS[label(event)] ?? PLACES[event.code];
      if (motion === undefined) return;
      event.preventDefault();
      this.pressed.set(event.code, motion);
      this.tick();
    });
    window.addEventListener("keyup", (event) => {
      this.fast = event.shiftKey;
      this.pressed.delete(event.code);
      // macOS reports no release of keys that are let go while Command is held.
      if (event.key === "Meta") this.pressed.clear();
    });
    window.addEventListener("blur", () => {
      this.pressed.clear();
    });
  }

  /** To the center, but never so small that movements, which are proportional to it, would come to a halt. */
  private get distance(): number {
    const { camera } = this;
    return Math.max(length(subtract(camera.center, camera.pose.position)), camera.closest);
  }

  private change(): void {
    this.camera.changed();
    clearTimeout(this.rest);
    this.rest = setTimeout(() => {
      if (this.pressed.size === 0) this.camera.rested();
    }, REST_MS);
  }

  private drag(event: PointerEvent): void {
    const before = this.pointers.get(event.pointerId);
    if (before === undefined) return;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (this.pointers.size === 2) {
      const other = [...this.pointers.values()].find((pointer) => pointer.pointerId !== event.pointerId)!;
      const apart = (a: PointerEvent) => Math.hypot(a.clientX - other.clientX, a.clientY - other.clientY);
      if (apart(before) > 0 && apart(event) > 0) this.dolly(apart(event) / apart(before));
      this.pan(dx / 2, dy / 2);
    } else if (event.buttons & 6 || event.shiftKey) {
      this.pan(dx, dy);
    } else {
      this.turn(-dx * TURN_PER_PIXEL, dy * TURN_PER_PIXEL);
    }
    this.pointers.set(event.pointerId, event);
    this.change();
  }

  /** Orbit to the right and up around the center; when looking around, turn the other way. */
  private turn(yaw: number, pitch: number): void {
    const { camera } = this;
    if (camera.drag === "orbit") {
      camera.pose = orbit(camera.pose, camera.center, camera.vertical, yaw, pitch);
    } else {
      const { distance } = this;
      camera.pose = orbit(camera.pose, camera.pose.position, camera.vertical, -yaw, -pitch);
      camera.center = inFront(camera.pose, camera.pose.position, distance);
    }
  }

  /** Move so that points at the center's distance follow the pointer. */
  private pan(dx: number, dy: number): void {
    const lens = this.camera.lens();
    this.move((-dx / lens.fx) * this.distance, (dy / lens.fy) * this.distance, 0);
  }

  private move(right: number, up: number, forward: number): void {
    const { camera } = this;
    const before = camera.pose.position;
    camera.pose = moved(camera.pose, right, up, forward);
    const shift = subtract(camera.pose.position, before);
    camera.center = [0, 1, 2].map((axis) => camera.center[axis] + shift[axis]) as Vec3;
  }

  /** Divide the distance to the center by a factor. */
  private dolly(factor: number): void {
    const { camera } = this;
    const distance = this.distance / factor;
    camera.pose = moved(camera.pose, 0, 0, this.distance - distance);
    if (distance < camera.closest) camera.center = inFront(camera.pose, camera.pose.position, camera.closest);
  }

  private tick(): void {
    if (this.lastTick !== undefined) return;
    this.lastTick = performance.now();
    const run = (now: number) => {
      if (this.pressed.size === 0) {
        this.lastTick = undefined;
        this.camera.rested();
        return;
      }
      const seconds = Math.min(Math.max(now - this.lastTick!, 0) / 1000, 0.2);
      this.lastTick = now;
      // Covers the distance to the center in a bit more than a second, or a fifth of it when fast.
      const speed = this.distance * seconds * (this.fast ? 4 : 0.8);
      for (const { move, turn } of this.pressed.values()) {
        if (move !== undefined) this.move(...(move.map((part) => part * speed) as Vec3));
        if (turn !== undefined) this.turn(turn[0] * TURN_PER_SECOND * seconds, turn[1] * TURN_PER_SECOND * seconds);
      }
      this.camera.changed();
      requestAnimationFrame(run);
    };
    requestAnimationFrame(run);
  }
}
