# One book by character, the best found for ten minutes on two slow CPU cores: a small model that reads it eight or nine
# times. RESULTS.md says how it was chosen, and what it gives for three books.
#     python data/hongloumeng/prepare.py && python train.py config/train_book_char.py
# Other books: python data/text/prepare.py --input BOOK.txt --clean --tokenizer=char, then --dataset=text.
# To read all of a larger validation split: a larger --eval_iters (150 for ten novels).
# On a faster machine, or with more time, a larger model learns more:
#     python plan.py config/train_book_char.py --minutes=10 --sweep

out_dir = "out-book-char"
dataset = "hongloumeng"

max_minutes = 10  # the rates fall to 0 by the clock, or with the epochs on a faster machine
max_epochs = 12
max_iters = 1000000
eval_interval = 1500
eval_iters = 44  # all of 红楼梦's validation split is read
log_interval = 50
always_save_checkpoint = False  # keep the best

gradient_accumulation_steps = 1
batch_size = 8
block_size = 256

n_layer = 3
n_head = 4
n_embd = 128
dropout = 0.05
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
