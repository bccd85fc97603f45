# 红楼梦 (Dream of the Red Chamber) by character, small enough for a laptop's CPU.
#     python data/hongloumeng/prepare.py && python train.py config/train_hongloumeng_char.py

out_dir = "out-hongloumeng-char"
dataset = "hongloumeng"

eval_interval = 100
eval_iters = 200  # more than the validation split has: it is read whole
log_interval = 10
always_save_checkpoint = False  # keep the best

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 2
n_head = 4
n_embd = 128
dropout = 0.0

learning_rate = 1e-3
min_lr = 1e-4
warmup_iters = 20
max_iters = 1000
beta2 = 0.99

wandb_project = "hongloumeng"
wandb_run_name = "char"
