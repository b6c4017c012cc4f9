"""Quantization-aware training: what `prepare_qat_pt2e` puts into a graph, and what conversion makes of it.

In `graphs`, `hiding` hides batch norms from torchao as modules; `wrapping` puts fake quantizers where calibration has
observers, and makes dropouts modules too; `finishing` removes what only training needed when `convert_pt2e` runs. The
modules of a graph that trains are in `quantizers` and `layers`; those in `layers` follow the model's mode. `schedule`
has their milestones. `steps` moves them through the milestones and keeps the ranks of a process group in agreement.
"""
