import type { Pose } from "./camera";
import { orthonormal } from "./camera";
import type { Vec3 } from "./vector";

/** The content of a link to an image: a view of the dataset, and the camera's pose if it has moved. */
export interface Link {
  view: number;
  pose?: Pose; // none: the view's own
  zoom: number; // 1: the view's own
  mode?: string;
  network?: number;
}

/** A link as the part of an address after the #. */
export function formatLink(link: Link): string {
  const parts = [`view=${link.view}`];
  if (link.pose !== undefined) {
    const { position, right, back } = link.pose;
    parts.push(`at=${numbers(position)}`, `right=${numbers(right)}`, `back=${numbers(back)}`);
  }
  if (link.zoom !== 1) parts.push(`zoom=${round(link.zoom)}`);
  if (link.mode !== undefined && link.mode !== "color") parts.push(`show=${link.mode}`);
  if (link.network !== undefined && link.network !== 0) parts.push(`network=${link.network}`);
  return parts.join("&");
}

/** Parse the part of an address after the #. Missing or invalid values get their defaults. */
export function parseLink(hash: string, views: number, networks: number, modes: readonly string[]): Link {
  const values = new URLSearchParams(hash.replace(/^#/, ""));
  const whole = (key: string, count: number) => {
    const value = Number(values.get(key) ?? 0);
    return Number.isInteger(value) && value >= 0 && value < count ? value : 0;
  };
  const zoom = Number(values.get("zoom") ?? 1);
  const mode = values.get("show") ?? "color";
  return {
    view: whole("view", views),
    pose: parsePose(values),
    zoom: zoom >= 0.01 && zoom <= 100 ? zoom : 1,
    mode: modes.includes(mode) ? mode : "color",
    network: whole("network", networks),
  };
}

function parsePose(values: URLSearchParams): Pose | undefined {
  const [position, right, back] = ["at", "right", "back"].map((key) => {
    const vector = (values.get(key) ?? "").split(",").map(Number);
    return vector.length === 3 && vector.every(Number.isFinite) ? (vector as Vec3) : undefined;
  });
  if (position === undefined || right === undefined || back === undefined) return undefined;
  const pose = orthonormal({ position, right, up: [0, 0, 0], back });
  return [...pose.right, ...pose.up, ...pose.back].every(Number.isFinite) ? pose : undefined;
}

function numbers(vector: Vec3): string {
  return vector.map(round).join(",");
}

function round(value: number): string {
  return String(Number(value.toFixed(5)));
}
