"""Encoder weights for segmentation: a U-Net of segmentation_models_pytorch finds dark structures in patches.

    python examples/segment_with_unet.py NAME     (a ResNet that `cem-assets weights` lists as committed)

The masks are made up (what is darker than the patch's mean), so that the script needs no labels; put yours there.
"""

import sys

import segmentation_models_pytorch as smp
import torch

from cem_assets import readers

SIDE_PX, NUM_PATCHES, NUM_STEPS = 96, 8, 10


def main() -> None:
    """Build the U-Net, train its decoder for some steps, say how the loss falls."""
    name = sys.argv[1]
    torch.manual_seed(0)
    listed = readers.list_weights().set_index("name").loc[name]
    release = readers.read_release()
    mean, std = listed["norms"] or (release.pixel_mean, release.pixel_std)
    model = smp.Unet(listed["arch"], encoder_weights=None, in_channels=1, classes=1)
    model.encoder.load_state_dict(readers.load_weights(name, form="smp").state_dict())
    model.encoder.requires_grad_(False)
    images = [image for _, image in release.iter_images() if min(image.shape) >= SIDE_PX][:NUM_PATCHES]
    x = torch.stack([torch.from_numpy(image[:SIDE_PX, :SIDE_PX].copy()).float() for image in images])[:, None] / 255
    masks = (x < x.mean(dim=(2, 3), keepdim=True)).float()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(NUM_STEPS):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model((x - mean) / std), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"{name}: U-Net on {len(images)} patches, loss {losses[0]:.3f} > {losses[-1]:.3f} in {NUM_STEPS} steps")


if __name__ == "__main__":
    main()
