# The four classic novels with one BPE of 8,192 ids; for a gaming GPU, or a patient laptop.
#     python data/classics/prepare.py --clean && python train.py config/train_classics_bpe.py
# Also for other books: python data/text/prepare.py --input FOLDER, then --dataset=text.

out_dir = "out-classics"
dataset = "classics"

eval_interval = 200
eval_iters = 40
log_interval = 10
always_save_checkpoint = False  # keep the best

# 32 x 256 = 8,192 tokens per step
gradient_accumulation_steps = 1
batch_size = 32
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
# Qwen3's shape, which transformers and llama.cpp know
pos = "rope"
norm = "rmsnorm"
mlp = "swiglu"
qk_norm = True

optimizer = "muon"
learning_rate = 3e-3
min_lr = 0.0
warmup_iters = 50
max_iters = 2500  # about 10 epochs
beta2 = 0.99

wandb_project = "classics"
wandb_run_name = "bpe"
