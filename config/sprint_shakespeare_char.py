# Tiny Shakespeare by character, to the loss of nanoGPT's laptop command (1.89) in the fewest seconds on two CPU cores:
# a small model reads more text in a short time, and few steps want high rates. RESULTS.md says how it was chosen.
#     python data/shakespeare_char/prepare.py && python train.py config/sprint_shakespeare_char.py
# With a minute or more, config/speed_shakespeare_char.py gets much further.

out_dir = "out-sprint-shakespeare-char"
dataset = "shakespeare_char"

max_iters = 330
eval_interval = 1000000  # besides step 0, at the end only
eval_iters = 110  # more than the validation split has, so all of it is read
log_interval = 50

gradient_accumulation_steps = 1
batch_size = 16
block_size = 64

n_layer = 2
n_head = 4
n_embd = 64
mlp_hidden = 128
pos = "rope"
smear = True
tie_weights = False
init = "kaiming"

optimizer = "muon"
muon_learning_rate = 0.06
learning_rate = 1.2e-2
schedule = "linear"
min_lr = 0.0
warmup_iters = 20
beta2 = 0.99
