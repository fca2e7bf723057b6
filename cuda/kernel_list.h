// The kernels, in the order of the course. To add one: its `.cu` file, and a line here.
//
// RSK_KERNEL(name, compute capability that it needs, times ten; colour and marker in figures; idea)
//
// kernels.h makes an enum and tables of this list, and rsk/sampler/registry.py reads it too.
RSK_KERNEL(thread_per_sequence, 0, "#d55e00", "v",
           "one thread walks one request: early exit inside the kernel")
RSK_KERNEL(block_per_sequence, 0, "#cc79a7", "^",
           "the threads of a block share a row, and neighbours read neighbours")
RSK_KERNEL(loads_in_flight, 0, "#8c6d1f", "p",
           "each thread asks for several packs of 16 bytes before it waits for one")
RSK_KERNEL(split_vocabulary, 0, "#009e73", "<",
           "several blocks share a row, so that few requests fill the GPU")
RSK_KERNEL(cluster, 90, "#56b4e9", ">",
           "the blocks of a request form a cluster and send each other their totals")
