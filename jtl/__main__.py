"""`python -m jtl`"""

import sys

from jtl.cli import main

if __name__ == '__main__':
    sys.exit(main())
