import { App, isMode } from "./app";
import { openContext, contextLost } from "./gl/context";
import { Progressive } from "./gl/progressive";
import { measure, type Measured } from "./measure";
import { loadScene } from "./scene/load";
import { Networks } from "./scene/networks";
import type { SceneDescription } from "./scene/format";
import type { Work } from "./shader/fragment";
import { element, painted } from "./ui/elements";
import { hideProgress, showError, showProgress, wireMessages } from "./ui/messages";

interface PictureOptions {
  view: number;
  width: number;
  height: number;
  mode?: string;
  network?: number;
  stepFactor?: number;
}

/** The interface for scripts, available as `await window.eugenViewer`. */
interface Api {
  scene: SceneDescription;
  /** An image of a view: rows from the top, four bytes per pixel. Mode "distance" gives a little-endian float per pixel. */
  render(options: PictureOptions): Promise<{ pixels: Uint8ClampedArray; milliseconds: number }>;
  /** Times of images of a view by every network, interleaved. */
  measure(options: PictureOptions & { turns: number }): Promise<Measured[]>;
  /** Work per sample of a network's shader. */
  work(network: number): Promise<Work>;
}

declare global {
  interface Window {
    eugenViewer?: Promise<Api>;
  }
}

async function start(): Promise<Api> {
  wireMessages();
  const canvas = element("canvas", HTMLCanvasElement);
  const gl = openContext(canvas);
  canvas.addEventListener("webglcontextlost", () => {
    showError(contextLost(), true);
  });
  showProgress("Loading the scene", 0);
  const scene = await loadScene();
  const networks = new Networks(gl, scene, {
    loading: (name, loaded, total) => {
      const megabytes = (bytes: number) => (bytes / 1e6).toFixed(1);
      showProgress(`Loading ${name}: ${megabytes(loaded)} of ${megabytes(total)} MB`, loaded / total);
    },
    preparing: () => {
      showProgress("Preparing the graphics device");
      return painted();
    },
    over: hideProgress,
  });
  const progressive = await Progressive.create(gl);
  const app = new App(scene, progressive, networks);
  await app.start();
  const frame = ({ view, width, height, mode = "color", network = 0, stepFactor = 1 }: PictureOptions) => {
    if (!isMode(mode)) throw new RangeError(`no mode ${mode}`);
    return app.frameOfView(view, width, height, mode, network, stepFactor);
  };
  return {
    scene,
    render: async (options) => {
      const { target, timing } = await progressive.picture(await frame(options));
      const pixels = target.read();
      target.delete();
      return { pixels, milliseconds: timing.milliseconds };
    },
    measure: async ({ turns, ...options }) => {
      const frames = await Promise.all(scene.fields.map((_, network) => frame({ ...options, network })));
      return measure(progressive, frames, turns);
    },
    work: async (network) => (await networks.get(network)).work,
  };
}

window.eugenViewer = start();
window.eugenViewer.catch((error: unknown) => {
  showError(error, true);
});
