"""What machines and chips can do: cores, memory and its bandwidth, Qualcomm's chips, the cost of compiling for them."""
