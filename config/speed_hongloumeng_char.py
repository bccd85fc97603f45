# 红楼梦 by character in ten minutes on two CPU cores, to a validation loss of 3.51: speed_shakespeare_char.py's recipe,
# larger, with less overfitting (a tied head, dropout) and with `smear`. RESULTS.md says how it was chosen.
#     python data/hongloumeng/prepare.py && python train.py config/speed_hongloumeng_char.py
# In half a minute on slow cores, validation loss 4.50: --n_layer=2 --n_embd=128 --dropout=0 --batch_size=4
# --eval_iters=86 --muon_learning_rate=0.05 --learning_rate=1e-2 --max_iters=180

out_dir = "out-speed-hongloumeng-char"
dataset = "hongloumeng"

max_iters = 3400
eval_interval = 1700
eval_iters = 44  # all of 红楼梦's validation split is read
log_interval = 50
always_save_checkpoint = False  # keep the best

gradient_accumulation_steps = 1
batch_size = 8
block_size = 256

n_layer = 4
n_head = 4
n_embd = 256
dropout = 0.1
pos = "rope"
smear = True
init = "kaiming"

optimizer = "muon"
muon_learning_rate = 0.03
learning_rate = 6e-3
schedule = "linear"
min_lr = 0.0
warmup_iters = 20
beta2 = 0.99
