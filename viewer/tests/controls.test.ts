import { afterEach, expect, it, vi } from "vitest";
import { poseOf } from "../src/camera/camera";
import { type Controlled, Controls } from "../src/camera/controls";
import { dot, length, subtract, type Vec3 } from "../src/camera/vector";
import { scene } from "./fixture";

afterEach(() => {
  vi.unstubAllGlobals();
});

const CLOSEST = 0.05;

function controlled() {
  const pose = poseOf(scene.views[0]);
  const canvas = new EventTarget();
  vi.stubGlobal("window", new EventTarget());
  vi.stubGlobal("setTimeout", () => 0);
  const camera: Controlled = {
    pose,
    center: [0, 1, 2].map((axis) => pose.position[axis] - 2 * pose.back[axis]) as Vec3,
    vertical: [0, 0, 1],
    closest: CLOSEST,
    drag: "orbit",
    lens: () => ({ fx: 100, fy: 100, cx: 50, cy: 50, width: 100, height: 100 }),
    changed: () => undefined,
    rested: () => undefined,
    pick: () => undefined,
  };
  new Controls(canvas as HTMLCanvasElement, camera);
  const scroll = (deltaY: number) => canvas.dispatchEvent(Object.assign(new Event("wheel"), { deltaY, deltaMode: 0 }));
  const ahead = () => -dot(subtract(camera.center, camera.pose.position), camera.pose.back);
  return { camera, scroll, ahead };
}

it("scrolls to a part of the distance and back", () => {
  const { camera, scroll, ahead } = controlled();
  const before = camera.pose.position;
  scroll(-400);
  expect(ahead()).toBeCloseTo(2 / 1.0015 ** 400);
  scroll(400);
  expect(length(subtract(camera.pose.position, before))).toBeCloseTo(0);
});

it("goes on past the center, which it pushes ahead", () => {
  const { camera, scroll, ahead } = controlled();
  for (let flick = 0; flick < 5; flick++) scroll(-3000);
  expect(ahead()).toBeCloseTo(CLOSEST);
  const before = camera.pose.position;
  scroll(-3000);
  expect(length(subtract(camera.pose.position, before))).toBeGreaterThan(0.9 * CLOSEST);
  expect(ahead()).toBeCloseTo(CLOSEST);
});
