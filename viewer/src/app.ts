import { fitted, frameOf, inFront, type Lens, type Pose, poseOf, rayDirection } from "./camera/camera";
import { type Controlled, Controls, type Drag, movesBy, REST_MS } from "./camera/controls";
import { formatLink, type Link, parseLink } from "./camera/link";
import { add, dot, length, scale, subtract, type Vec3 } from "./camera/vector";
import type { FieldRenderer, Look } from "./gl/fieldRenderer";
import type { Frame, Progressive } from "./gl/progressive";
import { measure } from "./measure";
import type { SceneDescription, View } from "./scene/format";
import { photoAddress } from "./scene/load";
import type { Networks } from "./scene/networks";
import { type Mode, MODES } from "./shader/fragment";
import { choose, element, onChoice } from "./ui/elements";
import { keep, kept } from "./ui/kept";
import { isTaken, label } from "./ui/keys";
import { hideFatalError, showError } from "./ui/messages";
import { wireTheme } from "./ui/theme";
import { Wipe } from "./ui/wipe";

// Step sizes of the quality slider's positions, relative to training, and their names.
const QUALITIES = [
  { stepFactor: 4, name: "coarse" },
  { stepFactor: 2, name: "medium" },
  { stepFactor: 1, name: "exact" },
] as const;
const LEAST_RESOLUTION = 25; // percent, as in index.html
// Kept through a reload: a device that was lost would otherwise be overloaded again with the default values.
const RESOLUTION_KEY = "eugen-resolution";
const QUALITY_KEY = "eugen-quality";
const SHOWN: readonly Mode[] = ["color", "depth", "opacity", "normals"];
// Smallest and largest side of the square images that are timed.
const MEASURED_SIDE = 256;
const LARGEST_MEASURED_SIDE = 2048;
const MEASURED_TURNS = 5;
// Browsers round times to up to a millisecond, so images that take less than this are enlarged.
const MEASURABLE_MS = 50;

/** The page: its content and its controls. */
export class App implements Controlled {
  pose: Pose;
  center: Vec3;
  drag: Drag = "orbit";
  readonly vertical: Vec3;

  private view: number;
  private atView = true;
  private zoom: number;
  private mode: Mode;
  private network: number;
  private choices = 0; // of a network, counted
  private picks = 0; // of a center or a view, counted: only the last one takes effect
  private resolution = kept(RESOLUTION_KEY, LEAST_RESOLUTION, 100); // percent
  private quality = kept(QUALITY_KEY, 0, QUALITIES.length - 1);
  private renderer: FieldRenderer | undefined;
  private drawn = false; // whether a complete image has been drawn
  private readonly timed = new Map<number, string>(); // what the image showed whose time stands beside a network
  private readonly wipe = new Wipe();
  private readonly canvas = element("canvas", HTMLCanvasElement);

  constructor(
    private readonly scene: SceneDescription,
    private readonly progressive: Progressive,
    private readonly networks: Networks,
  ) {
    this.vertical = scene.up;
    const link = this.linked();
    ({ view: this.view, zoom: this.zoom } = link);
    this.mode = link.mode as Mode;
    this.network = link.network ?? 0;
    this.pose = link.pose ?? poseOf(scene.views[this.view]);
    this.atView = link.pose === undefined;
    this.center = this.centerOf(this.pose);
    progressive.onFinished = (frame, timing) => {
      this.drawn = true;
      hideFatalError();
      const size = `${timing.width} × ${timing.height}`;
      this.status(`${format(timing.milliseconds)} per image at ${size}`);
      // Times of coarser images cannot be compared with those of exact ones.
      if (frame.look.mode === "color" && frame.look.stepFactor === 1) {
        this.writeTime(`${format(timing.milliseconds)} at ${size}`, JSON.stringify([frame.pose, frame.lens]));
      }
    };
    progressive.onError = (error) => {
      const fatal = !this.drawn || this.mode === "color";
      showError(error, fatal);
      if (!fatal) this.setMode("color"); // for which the shader is there
    };
    this.wire(); // first, so that its keys take precedence
    new Controls(this.canvas, this);
    this.writeControls();
    new ResizeObserver(() => {
      this.draw(false);
    }).observe(this.canvas);
    this.followDensity();
    this.wireDevice();
  }

  /** Load the chosen network and draw. If a link asks for what this device refuses, show the first network in color. */
  async start(): Promise<void> {
    try {
      await this.useNetwork(this.network);
    } catch (error) {
      if (this.network === 0 && this.mode === "color") throw error;
      this.mode = "color";
      await this.useNetwork(0);
      showError(error, false);
    }
  }

  /** Write the time of an image beside the network, and remove those of images that showed something else. */
  private writeTime(text: string, shown: string): void {
    this.timed.set(this.network, shown);
    for (const [network, other] of this.timed) {
      const label = document.getElementById(`time-${network}`);
      if (label === null) continue;
      if (network === this.network) label.textContent = text;
      else if (other !== shown) label.textContent = "";
    }
  }

  // Controlled

  get closest(): number {
    const [low, high] = this.scene.fields[this.network].space.box;
    return 0.01 * length(subtract(high, low));
  }

  lens(): Lens {
    return this.canvasLens(this.canvas.clientWidth, this.canvas.clientHeight);
  }

  changed(): void {
    this.atView = false;
    this.draw(true);
  }

  rested(): void {
    this.draw(false); // from a view, if one was chosen in the meantime
  }

  pick(x: number, y: number): void {
    if (this.renderer === undefined) return;
    // Render the distance of one pixel, with the lens shifted to it.
    const lens = this.lens();
    const one = { ...lens, cx: lens.cx - x + 0.5, cy: lens.cy - y + 0.5, width: 1, height: 1 };
    const frame = { renderer: this.renderer, pose: this.pose, lens: one, look: { ...this.look(), mode: "distance" as const } };
    const pick = ++this.picks;
    this.progressive
      .picture(frame)
      .then(({ target }) => {
        const [distance] = new Float32Array(target.read().buffer);
        target.delete();
        if (pick !== this.picks || distance <= 0) return;
        // Relative to the pose of the rendered pixel; the camera may have moved since, even past the point.
        const point = add(frame.pose.position, scale(rayDirection(frame.pose, one, 0.5, 0.5), distance));
        if (dot(subtract(point, this.pose.position), this.pose.back) >= 0) return;
        // Keep the viewing direction: the center gets the depth of the chosen point.
        const shift = subtract(point, inFront(this.pose, point, 0));
        this.pose = { ...this.pose, position: add(this.pose.position, shift) };
        this.center = point;
        this.atView = false;
        this.draw(false);
      })
      .catch((error: unknown) => {
        showError(error, false);
      });
  }

  // For scripts; see the viewer's README.md.

  /** A frame of a view of the dataset at a given size, with steps `stepFactor` times as long as in training. */
  async frameOfView(
    view: number,
    width: number,
    height: number,
    mode: Mode,
    network: number,
    stepFactor: number,
  ): Promise<Frame> {
    const renderer = await this.networks.get(network, mode);
    const described = this.scene.views[view];
    const pose = poseOf(described);
    return { renderer, pose, lens: fitted(described, width, height), look: { ...this.look(pose), mode, stepFactor } };
  }

  private linked(): Link {
    return parseLink(location.hash, this.scene.views.length, this.scene.fields.length, SHOWN);
  }

  private get described(): View {
    return this.scene.views[this.view];
  }

  private centerOf(pose: Pose): Vec3 {
    return inFront(pose, this.scene.focus, Math.max(this.scene.fields[this.network].near, this.closest));
  }

  private canvasLens(width: number, height: number): Lens {
    return fitted(this.described, width, height, this.zoom);
  }

  private look(pose = this.pose): Look {
    return {
      mode: this.mode,
      stepFactor: QUALITIES[this.quality].stepFactor,
      background: this.scene.background,
      depthRange: this.depthRange(pose),
    };
  }

  /** Smallest and largest distance that depth images distinguish by color. */
  private depthRange(pose: Pose): [number, number] {
    const { space, near, far } = this.scene.fields[this.network];
    const [low, high] = space.box;
    const middle = scale(add(low, high), 0.5);
    const radius = 0.5 * length(subtract(high, low));
    const distance = length(subtract(pose.position, middle));
    if (space.contracted) return [Math.max(near, 0.1 * radius), Math.min(far, 10 * radius)];
    const from = Math.max(near, distance - radius, 0.02 * radius);
    return [from, Math.max(Math.min(far, distance + radius), 1.01 * from)];
  }

  private draw(moving: boolean): void {
    const { canvas, renderer } = this;
    const factor = ((window.devicePixelRatio || 1) * this.resolution) / 100;
    const width = Math.max(1, Math.round(canvas.clientWidth * factor));
    const height = Math.max(1, Math.round(canvas.clientHeight * factor));
    const resized = canvas.width !== width || canvas.height !== height;
    if (resized) [canvas.width, canvas.height] = [width, height]; // which clears the canvas to black
    this.placeWipe();
    if (renderer === undefined) return;
    const frame: Frame = { renderer, pose: this.pose, lens: this.canvasLens(width, height), look: this.look() };
    this.progressive.show(frame, moving, resized);
    this.writeLegend(frame.look);
    if (!moving) {
      this.status("Drawing …");
      this.writeLink();
    }
  }

  /** Redraw on a screen with another pixel density: moving the window there may not change its size in CSS pixels. */
  private followDensity(): void {
    const change = () => {
      this.draw(false);
      this.followDensity();
    };
    const here = window.matchMedia(`(resolution: ${window.devicePixelRatio}dppx)`);
    here.addEventListener("change", change, { once: true });
  }

  /** Reload the page when a lost graphics device is restored, since everything on it is lost. */
  private wireDevice(): void {
    this.canvas.addEventListener("webglcontextlost", (event) => {
      // This asks the browser to restore the device. A device that fails at the first image would fail again and again.
      if (this.drawn) event.preventDefault();
    });
    this.canvas.addEventListener("webglcontextrestored", () => {
      this.writeLink();
      location.reload();
    });
  }

  /** Update the address to that of the current image. */
  private writeLink(): void {
    const hash = `#${this.link()}`;
    if (location.hash === hash) return;
    try {
      history.replaceState(null, "", hash);
    } catch {
      // Safari allows 100 changes in half a minute; the change for the next image may succeed.
    }
  }

  private link(): string {
    const { view, zoom, mode, network } = this;
    return formatLink({ view, zoom, mode, network, pose: this.atView ? undefined : this.pose });
  }

  private placeWipe(): void {
    const { photo } = this.described;
    element("compare-label", HTMLLabelElement).hidden = photo === undefined;
    const wanted = photo !== undefined && element("compare", HTMLInputElement).checked && this.atPhoto;
    const frame = frameOf(this.described, this.canvas.clientWidth, this.canvas.clientHeight);
    this.wipe.place(wanted ? photoAddress(this.scene, photo) : undefined, frame);
  }

  /** Whether the camera has the pose and the lens of the view's photo. */
  private get atPhoto(): boolean {
    return this.atView && this.zoom === 1;
  }

  private togglePhoto(): void {
    if (this.described.photo === undefined) return;
    const compare = element("compare", HTMLInputElement);
    if (compare.checked && !this.atPhoto) this.goTo(this.view);
    else compare.click();
  }

  private async useNetwork(index: number): Promise<void> {
    const choice = ++this.choices;
    const renderer = await this.networks.get(index, this.mode);
    if (choice !== this.choices) return; // another one was chosen while this one was loading
    this.network = index;
    this.renderer = renderer;
    this.writeControls();
    this.draw(false);
  }

  private goTo(view: number): void {
    this.picks++;
    const count = this.scene.views.length;
    this.view = (view + count) % count;
    this.pose = poseOf(this.described);
    this.center = this.centerOf(this.pose);
    this.atView = true;
    this.zoom = 1;
    this.writeControls();
    this.draw(false);
  }

  private setMode(mode: Mode): void {
    this.mode = mode;
    this.writeControls();
    this.draw(false);
  }

  private status(text: string): void {
    element("status", HTMLParagraphElement).textContent = text;
  }

  // Controls

  private wire(): void {
    const { scene } = this;
    document.title = `${scene.title} – eugen-nerf`;
    element("title", HTMLHeadingElement).textContent = scene.title;
    const panel = element("panel", HTMLElement);
    const toggle = element("toggle", HTMLButtonElement);
    const showPanel = (shown: boolean) => {
      panel.hidden = !shown;
      document.body.classList.toggle("options", shown);
      toggle.textContent = shown ? "Hide" : "Options";
      toggle.setAttribute("aria-expanded", String(shown));
    };
    showPanel(window.matchMedia("(min-width: 641px)").matches);
    toggle.addEventListener("click", () => {
      showPanel(panel.hasAttribute("hidden"));
    });
    this.wireViews();
    this.wireNetworks();
    this.wirePicture();
    onChoice(element("modes", HTMLDivElement), (value) => {
      this.setMode(value as Mode);
    });
    onChoice(element("drag", HTMLDivElement), (value) => {
      this.drag = value as Drag;
    });
    const actions: Partial<Record<string, () => void>> = {
      "[": () => {
        this.goTo(this.view - 1);
      },
      "]": () => {
        this.goTo(this.view + 1);
      },
      r: () => {
        this.goTo(this.view);
      },
      p: () => {
        this.togglePhoto();
      },
      h: () => {
        toggle.click();
      },
      n: () => {
        this.tryNetwork((this.network + 1) % scene.fields.length);
      },
    };
    SHOWN.forEach((mode, index) => {
      actions[`Digit${index + 1}`] = () => {
        this.setMode(mode);
      };
    });
    window.addEventListener("keydown", (event) => {
      if (isTaken(event) || movesBy(event.code)) return;
      const action = actions[label(event)] ?? actions[event.code];
      if (action === undefined) return;
      event.preventDefault();
      action();
    });
    window.addEventListener("hashchange", () => {
      if (location.hash.slice(1) === this.link()) return;
      const link = this.linked();
      this.goTo(link.view);
      this.zoom = link.zoom;
      this.mode = link.mode as Mode;
      if (link.pose !== undefined) {
        this.pose = link.pose;
        this.center = this.centerOf(this.pose);
        this.atView = false;
      }
      this.tryNetwork(link.network ?? 0);
    });
  }

  private wireViews(): void {
    const select = element("views", HTMLSelectElement);
    const groups = new Map<string, HTMLOptGroupElement>();
    this.scene.views.forEach((view, index) => {
      let group = groups.get(view.split);
      if (group === undefined) {
        group = document.createElement("optgroup");
        group.label = view.split;
        groups.set(view.split, group);
        select.append(group);
      }
      group.append(new Option(view.name, String(index)));
    });
    select.addEventListener("change", () => {
      this.goTo(Number(select.value));
    });
    const steps: [string, number][] = [
      ["previous", -1],
      ["next", 1],
    ];
    for (const [id, step] of steps) {
      element(id, HTMLButtonElement).addEventListener("click", () => {
        this.goTo(this.view + step);
      });
    }
    element("compare", HTMLInputElement).addEventListener("change", (event) => {
      // The photo can only be compared from its own view.
      if ((event.target as HTMLInputElement).checked && !this.atPhoto) this.goTo(this.view);
      this.placeWipe();
    });
  }

  private wireNetworks(): void {
    const { fields } = this.scene;
    if (fields.length < 2) return;
    element("networks", HTMLFieldSetElement).hidden = false;
    const list = element("network-list", HTMLDivElement);
    fields.forEach((field, index) => {
      const label = document.createElement("label");
      const input = Object.assign(document.createElement("input"), { type: "radio", name: "network", value: String(index) });
      const [name, time] = [document.createElement("span"), document.createElement("span")];
      name.textContent = field.name;
      time.id = `time-${index}`;
      label.append(input, name, time);
      list.append(label);
    });
    onChoice(list, (value) => {
      this.tryNetwork(Number(value));
    });
    const button = element("measure", HTMLButtonElement);
    button.addEventListener("click", () => {
      button.disabled = true;
      this.measureNetworks()
        .catch((error: unknown) => {
          element("measured", HTMLOutputElement).textContent = "";
          showError(error, false);
        })
        .finally(() => {
          button.disabled = false;
        });
    });
  }

  private async measureNetworks(): Promise<void> {
    const output = element("measured", HTMLOutputElement);
    output.textContent = "Measuring …";
    const { fields } = this.scene;
    const { pose } = this;
    const look: Look = { ...this.look(), mode: "color", stepFactor: 1 };
    const renderers = await Promise.all(fields.map((_, index) => this.networks.get(index)));
    let side = MEASURED_SIDE;
    let times: number[];
    for (;;) {
      const lens = this.canvasLens(side, side);
      const results = await measure(this.progressive, renderers.map((renderer) => ({ renderer, pose, lens, look })), MEASURED_TURNS);
      times = results.map(({ milliseconds }) => milliseconds);
      if (Math.min(...times) >= MEASURABLE_MS || side >= LARGEST_MEASURED_SIDE) break;
      side *= 2;
    }
    const lines = times.map((milliseconds, index) => `${fields[index].name}: ${format(milliseconds)}`);
    const ratio = times[1] / times[0];
    lines.push(
      Number.isFinite(ratio) && ratio > 0
        ? `${fields[1].name} takes ${ratio.toFixed(2)} times as long as ${fields[0].name}.`
        : "This browser's clock is too coarse for them.",
    );
    output.textContent = `${side} × ${side} from this view, interleaved. ${lines.join("; ")}`;
  }

  private tryNetwork(index: number): void {
    this.useNetwork(index).catch((error: unknown) => {
      showError(error, false);
      this.writeControls();
      this.draw(false); // a changed link may have moved the camera too
    });
  }

  private wirePicture(): void {
    const slider = (id: string, change: (value: number) => void) => {
      const input = element(id, HTMLInputElement);
      let rest: ReturnType<typeof setTimeout> | undefined;
      input.addEventListener("input", () => {
        change(Number(input.value));
        this.writeControls();
        this.draw(true);
        // Firefox fires no change event if a slider is released at its initial value.
        clearTimeout(rest);
        rest = setTimeout(() => {
          this.draw(false);
        }, REST_MS);
      });
    };
    slider("zoom", (value) => (this.zoom = 2 ** value));
    slider("resolution", (value) => {
      this.resolution = value;
      keep(RESOLUTION_KEY, value);
    });
    slider("quality", (value) => {
      this.quality = value;
      keep(QUALITY_KEY, value);
    });
    element("save", HTMLButtonElement).addEventListener("click", () => {
      this.save().catch((error: unknown) => {
        showError(error, false);
      });
    });
    const copy = element("link", HTMLButtonElement);
    copy.addEventListener("click", () => {
      this.writeLink();
      const tell = (text: string) => {
        copy.textContent = text;
        setTimeout(() => (copy.textContent = "Copy link"), 2000);
      };
      copyText(new URL(`#${this.link()}`, location.href).href).then(
        () => {
          tell("Copied");
        },
        () => {
          tell("See the address bar");
        },
      );
    });
    wireTheme(element("theme", HTMLButtonElement));
  }

  /** Draw the canvas image completely and offer it as a file. */
  private async save(): Promise<void> {
    if (this.renderer === undefined) return;
    const { width, height } = this.canvas;
    const frame = { renderer: this.renderer, pose: this.pose, lens: this.canvasLens(width, height), look: this.look() };
    const { target } = await this.progressive.picture(frame);
    const copy = Object.assign(document.createElement("canvas"), { width, height });
    copy.getContext("2d")?.putImageData(new ImageData(target.read(), width, height), 0, 0);
    target.delete();
    const blob = await new Promise<Blob | null>((resolve) => {
      copy.toBlob(resolve);
    });
    if (blob === null) throw new Error("the browser could not create a PNG");
    const url = URL.createObjectURL(blob);
    Object.assign(document.createElement("a"), { href: url, download: `${this.scene.title}.png` }).click();
    setTimeout(() => {
      URL.revokeObjectURL(url);
    }, 10_000);
  }

  /** Update every control to the current state; browsers restore some to their state before a reload. */
  private writeControls(): void {
    choose(element("modes", HTMLDivElement), this.mode);
    choose(element("network-list", HTMLDivElement), String(this.network));
    choose(element("drag", HTMLDivElement), this.drag);
    element("views", HTMLSelectElement).value = String(this.view);
    element("zoom", HTMLInputElement).value = String(Math.log2(this.zoom));
    element("resolution", HTMLInputElement).value = String(this.resolution);
    element("resolution-value", HTMLOutputElement).textContent = `${this.resolution} %`;
    element("quality", HTMLInputElement).value = String(this.quality);
    element("quality-value", HTMLOutputElement).textContent = QUALITIES[this.quality].name;
  }

  private writeLegend(look: Look): void {
    const legend = element("legend", HTMLParagraphElement);
    legend.hidden = this.mode !== "depth";
    legend.textContent = `${look.depthRange.map((t) => t.toPrecision(2)).join(" to ")} world units away`;
  }
}

/** Whether a text names a mode. */
export function isMode(text: string): text is Mode {
  return text in MODES;
}

function format(milliseconds: number): string {
  if (milliseconds > 9995) return `${(milliseconds / 1000).toFixed(0)} s`;
  return milliseconds < 9.95 ? `${milliseconds.toFixed(1)} ms` : `${milliseconds.toFixed(0)} ms`;
}

async function copyText(text: string): Promise<void> {
  // Available only on https and on localhost.
  const { clipboard } = navigator as { clipboard?: Clipboard };
  if (clipboard === undefined) throw new Error("no clipboard");
  await clipboard.writeText(text);
}
