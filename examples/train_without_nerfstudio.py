"""Train an EUGen radiance field without nerfstudio, on rays whose colors a formula gives: three seconds on one core."""

import torch
from torch.nn.functional import mse_loss, normalize

from eugen_nerf.field import EugenField, FieldConfig
from eugen_nerf.occupancy import OccupancyGrid
from eugen_nerf.ops import Space, StepRule
from eugen_nerf.optim import BETAS, MaskedAdam
from eugen_nerf.renderer import Renderer


def photographed(rays: int) -> tuple[torch.Tensor, ...]:
    """Random rays toward a ball of radius 0.8: origins, unit directions, colors on black, 1 where it was hit."""
    origins = 3 * normalize(torch.randn(rays, 3), dim=1)
    directions = normalize(2 * torch.rand(rays, 3) - 1 - origins, dim=1)
    middle = -(origins * directions).sum(dim=1, keepdim=True)
    inside = 0.8**2 - (origins + middle * directions).square().sum(dim=1, keepdim=True)
    surface = origins + (middle - inside.clamp_min(0).sqrt()) * directions
    hit = (inside > 0).float()
    return origins, directions, (0.5 + 0.5 * surface) * hit, hit


torch.manual_seed(0)
# The scene lies inside this box. With contracted=True, the world continues outside of it, up to `far`.
space = Space(box=((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0)), contracted=False)
# ns-train divides the box's diagonal into 384 steps on a CPU and 1,024 on a GPU.
rule = StepRule(space.diagonal / 384)
field = EugenField(FieldConfig(log2_hashmap_size=15))
# Start from thin fog, since an opaque field would occlude what it should learn. Use 0.1 in a contracted space.
field.set_initial_density(1.0)
renderer = Renderer(field, OccupancyGrid(64), space, rule, near=0.1, far=10.0)
networks = [*field.density_network.parameters(), *field.color_network.parameters()]
optimizers = [
    # Leaves entries of the hash table unchanged that received no gradient in this step.
    MaskedAdam(field.encoding.parameters(), lr=2e-2, betas=BETAS, eps=1e-15),
    torch.optim.Adam(networks, lr=4e-3, betas=BETAS, eps=1e-15),
]
for step in range(60):
    # Call this before every step, starting at 0; it acts in every 16th. Cells never evaluated count as occupied.
    renderer.update_occupancy(step)
    origins, directions, color, hit = photographed(256)
    # Jitter the samples along each ray, so that the field is trained between them too.
    out = renderer.render_differentiable(origins, directions, jitter=torch.rand(256))
    # A random background per ray prevents fog of the background's color.
    background = torch.rand(256, 3)
    loss = mse_loss(out.rgb + (1 - out.alpha)[:, None] * background, color + (1 - hit) * background)
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()

origins, directions, color, _ = photographed(4096)
out = renderer.render(origins, directions)  # without gradients; terminates rays that have become opaque
print(f"{-10 * mse_loss(out.rgb, color).log10():.1f} dB on black")
