"""Checkpoints: published atomically, verified, safe to load; models in Hugging Face's format.

A checkpoint is one dict of tensors and plain Python values: nanoGPT's six keys (model, optimizer, model_args,
iter_num, best_val_loss, config) and ours (scaler, rng, tokenizer, meta, run, format). In an out_dir:

    ckpt.pt                    the best or newest evaluated state, for sample.py
    last.pt                    the newest complete state
    last-1.pt, last-2.pt, …    its predecessors, in case last.pt is damaged (keep_checkpoints counts last.pt too)
    lock                       held by the run that writes there
    run                        the id of the run started last
    previous-1/, …             checkpoints and metrics of earlier runs, moved there by a fresh run

With --checkpoint_format=sharded each checkpoint is a folder instead of a file (sharded.py), used in the same way.
"""
