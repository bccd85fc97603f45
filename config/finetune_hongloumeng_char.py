# 红楼梦 by character, by a model after one pass over other novels. RESULTS.md says what that is worth.
#     python data/hongloumeng/prepare.py
#     python data/hongloumeng/prepare.py --input NOVEL... --clean --vocabulary=hongloumeng --out_dir=data/novels
#     python train.py config/speed_hongloumeng_char.py --dataset=novels --out_dir=out-novels --dropout=0
#         --max_iters=1200 --lr_decay_iters=3400
#     python train.py config/finetune_hongloumeng_char.py
# The novels lose the characters that 红楼梦 does not have, so both models have the same ids.

out_dir = "out-finetune-hongloumeng-char"
dataset = "hongloumeng"
init_from = "out-novels"

max_iters = 1700
eval_interval = 1700
eval_iters = 44  # all of 红楼梦's validation split is read
log_interval = 50
always_save_checkpoint = False  # keep the best

gradient_accumulation_steps = 1
batch_size = 8
block_size = 256
dropout = 0.1

# the rates go on from where the first run stopped: 1,200 of 3,400 steps towards 0
optimizer = "muon"
muon_learning_rate = 0.0195
learning_rate = 3.9e-3
schedule = "linear"
min_lr = 0.0
warmup_iters = 20
beta2 = 0.99
