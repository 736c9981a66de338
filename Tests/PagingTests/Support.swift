// Tests of this floor.
