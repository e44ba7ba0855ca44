"""What a run needs of hardware that need not be there: memory, time and money, before any of it is rented."""
