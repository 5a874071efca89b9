"""`python -m advdistill`, and so `torchrun -m advdistill train RECIPE`."""

from advdistill.cli.main import main

if __name__ == "__main__":
    main()
