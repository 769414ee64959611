"""Local web pages: so far the one on which people label patches.

`labelling` answers the page's requests, `serving` opens the port, `patch_source` finds the patches and their
pixels, `next_patches` orders them; the page itself is in `static`. What is answered is kept by
`cem_assets.cem.classifier.answers`. Pictures of assets for Dagster's own pages are drawn in
`cem_assets.imaging.gallery`.
"""
