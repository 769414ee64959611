"""Local web pages: one on which people label patches, and one on which they explore a store.

`labelling` and `explorer` answer the requests of their pages, and `serving` opens the port. For labelling, `patch_source` finds
the patches and their pixels, and `next_patches` orders them. The pages themselves are in `static`. Answers are kept by
`cem_assets.cem.classifier.answers`. Pictures for Dagster's own pages are drawn in `cem_assets.imaging.gallery`.
"""
