# Fine-tunes GPT-2's own weights on Tiny Shakespeare; a few minutes on a GPU.
#     python data/shakespeare/prepare.py && python train.py config/finetune_shakespeare.py

import time

out_dir = "out-shakespeare"
dataset = "shakespeare"
init_from = "gpt2"  # nanoGPT has gpt2-xl, whose weights, gradients and AdamW take 25 GB

eval_interval = 5
eval_iters = 40
always_save_checkpoint = False  # it overfits quickly: keep the best

# 1 sequence x 32 micro-batches x 1,024 tokens = 32,768 tokens per step, 9 steps per epoch
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5
decay_lr = False

wandb_project = "shakespeare"
wandb_run_name = "ft-" + str(time.time())
