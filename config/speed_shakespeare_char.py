# Tiny Shakespeare by character, as fast as two CPU cores can learn it: nanoGPT's laptop model, but with Muon, RoPE, an
# untied head and a learning rate that decays to 0. RESULTS.md says what each part contributes.
#     python data/shakespeare_char/prepare.py && python train.py config/speed_shakespeare_char.py
# It overfits after some 2,500 steps. sprint_shakespeare_char.py has nanoGPT's laptop loss in six to twelve seconds.

out_dir = "out-speed-shakespeare-char"
dataset = "shakespeare_char"

max_iters = 2000
eval_interval = 1000000  # besides step 0, at the end only
eval_iters = 110  # more than the validation split has, so all of it is read
log_interval = 50

gradient_accumulation_steps = 1
batch_size = 16
block_size = 64

n_layer = 4
n_head = 4
n_embd = 128
pos = "rope"
tie_weights = False
init = "kaiming"

optimizer = "muon"
muon_learning_rate = 0.03
learning_rate = 6e-3
schedule = "linear"
min_lr = 0.0
warmup_iters = 20
beta2 = 0.99
