import type { View } from "../scene/format";
import { add, cross, dot, normalize, rotateAround, scale, subtract, type Vec3 } from "./vector";

/** Position and orientation (unit vectors) of a camera, in world coordinates. */
export interface Pose {
  position: Vec3;
  right: Vec3;
  up: Vec3;
  back: Vec3;
}

/** Intrinsics of a pinhole camera in pixels: image size, focal lengths, and principal point from the upper left corner. */
export interface Lens {
  fx: number;
  fy: number;
  cx: number;
  cy: number;
  width: number;
  height: number;
}

/** The pose of a dataset's camera. */
export function poseOf(view: View): Pose {
  const column = (index: number): Vec3 => [0, 1, 2].map((row) => view.camera_to_world[row][index]) as Vec3;
  return orthonormal({ right: column(0), up: column(1), back: column(2), position: column(3) });
}

/** The same pose with exactly orthonormal axes. */
export function orthonormal(pose: Pose): Pose {
  const back = normalize(pose.back);
  const right = normalize(subtract(pose.right, scale(back, dot(pose.right, back))));
  return { position: pose.position, right, up: cross(back, right), back };
}

/**
 * A lens that shows another lens's whole image on a canvas, as large as fits; the rest of the canvas extends the view.
 * @param zoom enlarges the image around its center.
 */
export function fitted(lens: Lens, width: number, height: number, zoom = 1): Lens {
  const factor = Math.min(width / lens.width, height / lens.height);
  return {
    fx: lens.fx * factor * zoom,
    fy: lens.fy * factor * zoom,
    cx: width / 2 + (lens.cx - lens.width / 2) * factor * zoom,
    cy: height / 2 + (lens.cy - lens.height / 2) * factor * zoom,
    width,
    height,
  };
}

/** The rectangle, in canvas pixels, of the other lens's image on the canvas of `fitted`. */
export function frameOf(lens: Lens, width: number, height: number): { left: number; top: number; width: number; height: number } {
  const factor = Math.min(width / lens.width, height / lens.height);
  const [w, h] = [lens.width * factor, lens.height * factor];
  return { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h };
}

/** Unit direction of the ray through a position (x, y) in the image, from the upper left corner. */
export function rayDirection(pose: Pose, lens: Lens, x: number, y: number): Vec3 {
  const across = scale(pose.right, (x - lens.cx) / lens.fx);
  const down = scale(pose.up, (lens.cy - y) / lens.fy);
  return normalize(subtract(add(across, down), pose.back));
}

/** Rotate a pose around an axis through a point. */
export function turned(pose: Pose, center: Vec3, axis: Vec3, angle: number): Pose {
  return orthonormal({
    position: add(center, rotateAround(subtract(pose.position, center), axis, angle)),
    right: rotateAround(pose.right, axis, angle),
    up: rotateAround(pose.up, axis, angle),
    back: rotateAround(pose.back, axis, angle),
  });
}

// Smallest angle between the viewing direction and straight up or down: 3 degrees.
const POLE = Math.cos((3 * Math.PI) / 180);

/**
 * Orbit around a point: rotate around the world's vertical, then tilt, but not beyond the poles. With the camera's own
 * position as the point, the camera looks around.
 * @param yaw, pitch in radians; positive values move the camera to the right and up.
 */
export function orbit(pose: Pose, center: Vec3, vertical: Vec3, yaw: number, pitch: number): Pose {
  const spun = turned(pose, center, vertical, yaw);
  const tilted = turned(spun, center, spun.right, -pitch);
  const [before, after] = [dot(spun.back, vertical), dot(tilted.back, vertical)];
  return Math.abs(after) > POLE && Math.abs(after) > Math.abs(before) ? spun : tilted;
}

/** Move along the camera's axes: right, up, forward, in world units. */
export function moved(pose: Pose, right: number, up: number, forward: number): Pose {
  const shift = add(add(scale(pose.right, right), scale(pose.up, up)), scale(pose.back, -forward));
  return { ...pose, position: add(pose.position, shift) };
}

/** The point on the camera's axis closest to `point`, but at least `least` in front of the camera. */
export function inFront(pose: Pose, point: Vec3, least: number): Vec3 {
  const distance = -dot(subtract(point, pose.position), pose.back);
  return add(pose.position, scale(pose.back, -Math.max(distance, least)));
}
