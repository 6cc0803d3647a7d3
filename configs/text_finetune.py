"""Fine-tuning on your own sentences: a table with the columns `text` and `label`.

    python -m jtl.main --config=configs/text_finetune.py:reviews.csv
    python -m jtl.main --config=configs/text_finetune.py:reviews.csv,init=bert-base-uncased
    jtl predict RUN_FOLDER sentences.txt        # a line each

    text,label,split                            `text2` for pairs of sentences; without `split`, 15 % of each class are
    "a fine film, all in all",good,train        held out to test and 10 % of the rest to validate
    "two hours of rain",bad,test

`init` is a BERT with its tokenizer: a well-known name, `hf:OWNER/NAME`, or a folder as `save_pretrained` writes it. The
default, a sentence encoder of 22 million parameters, is downloaded once. Needs `pip install '.[text]'`.
"""

from ml_collections import ConfigDict

from jtl.config import parse_arg
from jtl.errors import UserError


def get_config(arg=None):
    path, _, options = (arg or '').partition(',')
    if not path:
        raise UserError('name your table after a colon: --config=configs/text_finetune.py:PATH.csv')
    options = parse_arg(options, init='all-MiniLM-L6-v2', epochs=3.0)
    config = ConfigDict()
    config.data = {'name': f'csv:{path}'}
    config.init = options.init
    config.model = {'dropout': 0.1}
    config.batch_size = 32
    config.epochs = options.epochs
    config.rules = (('head/.*', 10.0), ('.*', 1.0))  # the head is new
    config.optim = {'name': 'adamw', 'lr': 1e-4, 'schedule': 'linear', 'warmup': 10, 'weight_decay': 0.01, 'clip': 1.0}
    return config
