# What quickstart.py trains: the best model found for two minutes on 2 CPU cores, by bits per byte of held-out files;
# RESULTS.md has the table.
#     python data/pycode/prepare.py --out_dir data/quickstart --vocab_size=4096 --val_fraction=0.05
#     python train.py config/quickstart.py

out_dir = "out-quickstart"
dataset = "quickstart"

max_minutes = 2
max_iters = 1000000
eval_interval = 400
eval_iters = 100  # more than the validation split has, so all of it is read
log_interval = 20
always_save_checkpoint = False

gradient_accumulation_steps = 1
batch_size = 8
block_size = 256

n_layer = 2
n_head = 4
n_embd = 128
pos = "rope"
qk_norm = True
smear = True

optimizer = "muon"
muon_learning_rate = 0.03
learning_rate = 6e-3
schedule = "linear"
min_lr = 0.0
warmup_iters = 20
beta2 = 0.99
