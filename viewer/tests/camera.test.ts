import { describe, expect, it } from "vitest";
import { fitted, frameOf, inFront, moved, orbit, poseOf, rayDirection } from "../src/camera/camera";
import { formatLink, parseLink } from "../src/camera/link";
import { dot, length, subtract, type Vec3 } from "../src/camera/vector";
import { expected, scene } from "./fixture";

const view = scene.views[0];
const pose = poseOf(view);
const vertical: Vec3 = [0, 0, 1];
const center: Vec3 = [0, 0, 0];

it("sends rays through pixels as Python does", () => {
  expected.pixels.forEach(([row, column], n) => {
    const ray = rayDirection(pose, view, column, row);
    ray.forEach((value, axis) => {
      expect(value).toBeCloseTo(expected.rays[n][axis], 4);
    });
  });
});

describe("a lens fitted to a canvas", () => {
  it.each([
    [80, 60],
    [200, 60],
    [40, 400],
  ])("shows the same where the view's picture is (%i x %i)", (width, height) => {
    const lens = fitted(view, width, height);
    const frame = frameOf(view, width, height);
    expect(frame.left + frame.width / 2).toBeCloseTo(width / 2);
    expect(Math.min(frame.left, frame.top)).toBeCloseTo(0);
    const [x, y] = [frame.left + frame.width * 0.2, frame.top + frame.height * 0.7];
    const ray = rayDirection(pose, lens, x, y);
    rayDirection(pose, view, view.width * 0.2, view.height * 0.7).forEach((value, axis) => {
      expect(ray[axis]).toBeCloseTo(value);
    });
  });

  it("zooms around the middle", () => {
    const [near, far] = [fitted(view, 80, 60, 2), fitted(view, 80, 60)];
    expect(near.fx).toBe(2 * far.fx);
    const middle = rayDirection(pose, far, 40, 30);
    rayDirection(pose, near, 40, 30).forEach((value, axis) => {
      expect(value).toBeCloseTo(middle[axis]);
    });
  });
});

describe("orbiting", () => {
  it.each([
    [0.4, 0],
    [0, 0.3],
    [-2, -0.5],
  ])("by %f and %f keeps the distance, the axes and the way the center is seen", (yaw, pitch) => {
    const turned = orbit(pose, center, vertical, yaw, pitch);
    expect(length(turned.position)).toBeCloseTo(length(pose.position));
    for (const [a, b] of [[turned.right, turned.up], [turned.up, turned.back], [turned.back, turned.right]]) {
      expect(dot(a, b)).toBeCloseTo(0);
      expect(length(a)).toBeCloseTo(1);
    }
    expect(dot(turned.position, turned.back)).toBeCloseTo(dot(pose.position, pose.back));
  });

  it("goes to the right and up for positive angles", () => {
    const aside = subtract(orbit(pose, center, vertical, 0.1, 0).position, pose.position);
    expect(dot(aside, pose.right)).toBeGreaterThan(0);
    expect(orbit(pose, center, vertical, 0, 0.1).position[2]).toBeGreaterThan(pose.position[2]);
  });

  it("stops short of the poles", () => {
    let turned = pose;
    for (let n = 0; n < 100; n++) turned = orbit(turned, center, vertical, 0, 0.1);
    expect(Math.abs(dot(turned.back, vertical))).toBeLessThan(0.9999);
    expect(turned.position[2]).toBeGreaterThan(0.9 * length(pose.position));
    const back = orbit(turned, center, vertical, 0, -0.1);
    expect(back.position[2]).toBeLessThan(turned.position[2]); // and comes back from there
  });
});

it("moves along its axes", () => {
  const forward = moved(pose, 0, 0, 1);
  expect(dot(subtract(forward.position, pose.position), pose.back)).toBeCloseTo(-1);
});

it("puts the center in front of the camera", () => {
  expect(length(subtract(inFront(pose, center, 0.1), pose.position))).toBeCloseTo(dot(pose.position, pose.back));
  const behind: Vec3 = [10, -8, 0];
  expect(length(subtract(inFront(pose, behind, 0.1), pose.position))).toBeCloseTo(0.1);
});

describe("links", () => {
  const modes = ["color", "depth"];

  it("say where the camera is", () => {
    const there = orbit(pose, center, vertical, 0.3, 0.2);
    const text = formatLink({ view: 3, pose: there, zoom: 1.5, mode: "depth", network: 1 });
    const link = parseLink(`#${text}`, 5, 2, modes);
    expect(link).toMatchObject({ view: 3, zoom: 1.5, mode: "depth", network: 1 });
    for (const axis of ["position", "right", "up", "back"] as const) {
      link.pose![axis].forEach((value, n) => {
        expect(value).toBeCloseTo(there[axis][n], 4);
      });
    }
  });

  it("are short for a view of the dataset", () => {
    expect(formatLink({ view: 7, zoom: 1, mode: "color", network: 0 })).toBe("view=7");
  });

  it.each(["", "#", "#view=99&network=5&show=x&zoom=-1", "#view=x&at=1,2&right=1,0,0&back=0,0,1", "#at=1,1,1&right=0,0,0&back=0,0,0"])(
    "that say nothing sensible are the first view (%s)",
    (hash) => {
      expect(parseLink(hash, 5, 2, modes)).toEqual({ view: 0, pose: undefined, zoom: 1, mode: "color", network: 0 });
    },
  );
});
