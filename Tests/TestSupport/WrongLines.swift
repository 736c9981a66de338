// Lines that a person may type at the console and that no command takes. The host and a boot type them all.

/// Each command with wrong arguments: an unknown word, one that is missing, too many, a figure out of range.
package enum WrongLines {
  /// A word too many, an unknown flag, and an assignment, behind a line that works.
  private static let tails = ["zz", "-q", "zz=1", "1 2 3 4 5", "\"", "-j -q"]

  /// The words before the wrong one.
  private static let starts = [
    "frames", "map", "map 0x10_0000+2M", "kmem", "vmem kernel_va", "objects 1", "vmstat -m",
    "why 2M", "failures", "buddy", "queues", "swap", "locks", "whatis 0x10_0000", "whatis frame 300",
    "whatis frames 256 to 767", "whatis 0x10_0000+2M", "pagetable 0x10_0000", "memmap", "cpus", "threads",
    "tour", "replay keep", "dirty 1M", "dirty free", "verify", "contig 2M", "contig list", "contig free 1",
    "launder active 1M", "launder daemon", "wire dirty+4K", "unwire dirty+4K", "fault double-free",
    "selftest invariants", "bench kmem", "watchdog on", "snapshot a", "diff a", "sysctl vm.free_target",
    "help why", "poweroff", "panic",
  ]

  /// Words that are wrong by themselves.
  private static let lines = [
    "zz", "fram", "\"", "'frames", "-j", "map zz", "map 0x10_0000+", "map 0x10_0000+0", "map +4K",
    "map 0x10_0000+4Q",
    "map 0x10_0000-0x20_0000", "map 0xffff_ffff_ffff_ffff+2M", "map 99999999999999999999", "map 0x",
    "map \"\"",
    "vmem zz", "vmem \"\"", "objects zz", "objects 0", "objects 99999999999999999999", "objects -1",
    "vmstat -m -z",
    "vmstat zz",
    "vmstat -x", "why", "why zz", "why 0", "why -1", "why 2Q", "why 99999999999T", "why 2M align=3",
    "why 2M align=zz", "why 2M align=", "why 2M low=2 high=1", "why 2M boundary=5",
    "why 2M align=2M align=2M",
    "why 2M high=", "whatis", "whatis zz", "whatis 300", "whatis frame", "whatis frame zz",
    "whatis frame 99999999", "whatis frames", "whatis frames 1", "whatis frames 1 to", "whatis frames 2 to 1",
    "whatis frames 1 2", "whatis 0x10_0000+", "whatis 0x10_0000+0", "whatis 0x1_0000_0000_0000_0000",
    "whatis 0x8000_0000_0000_0000", "whatis 0xffff_ffff_ffff_f000+1M", "pagetable zz",
    "pagetable 0x8000_0000_0000_0000", "tour 1", "replay zz", "replay on=0", "replay on=99", "replay on=zz",
    "replay on=",
    "dirty", "dirty zz", "dirty 0", "dirty -1", "dirty 0%", "dirty 1000000%", "dirty 99999999T", "dirty %",
    "dirty 10%%", "dirty 1Q",
    "contig", "contig zz", "contig 0", "contig 2M attr=zz", "contig 2M type=", "contig 2M nowait nowait",
    "contig free", "contig free zz", "contig free 99", "contig 99999999999T", "launder zz",
    "launder active zz", "launder 0",
    "launder active 0", "launder daemon 1M", "wire", "wire zz", "wire 0x10_0000+4K", "wire dirty+4K",
    "wire dirty+zz", "wire 0xffff_ffff_ffff_f000+4K", "unwire", "unwire zz",
    "unwire 0xffff_c000_0000_0000+4K",
    "fault", "fault zz", "selftest zz", "selftest smp 0", "selftest smp zz", "selftest smp 99999999999",
    "selftest frames 10",
    "bench zz", "watchdog zz", "watch", "watch 0 frames", "watch 9999 frames", "watch zz", "watch 1 zz",
    "watch watch", "watch 1",
    "diff zz", "snapshot \"\"", "sysctl zz", "sysctl zz=1", "sysctl vm.free_target=",
    "sysctl vm.free_target=zz",
    "sysctl vm.free_target=-1", "sysctl vm.free_target=99999999", "sysctl vm.contig.strategy=zz",
    "sysctl kmem.audit=2", "sysctl =1", "sysctl kmem.trim_every=0", "sysctl vm.failures=1", "help zz",
  ]

  /// All of them.
  package static var all: [String] { lines + starts.flatMap { start in tails.map { "\(start) \($0)" } } }
}
