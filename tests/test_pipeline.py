"""process(): one record in, one outcome out."""
