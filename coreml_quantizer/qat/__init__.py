"""Quantization-aware training: what `prepare_qat_pt2e` puts into a graph, and what conversion makes of it.

`hiding` takes batch norms and dropouts out of torchao's sight and makes them modules that follow the model's mode;
`wrapping` puts fake quantizers where calibration has observers; `finishing` undoes what training needed when
`convert_pt2e` comes. The modules between: `fake_quantize`, `learnable`, `folded_weight`, `compressed_weight`,
`batch_norm`, `dropout`; `schedule` moves them through the milestones, `distributed` keeps ranks alike.
"""
