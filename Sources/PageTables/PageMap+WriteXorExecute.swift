// The proof that no frame can be written through one mapping and executed through another.

import MemoryPrimitives

/// A frame that could be written through one mapping and executed through another.
package struct WriteExecuteViolation {
  /// The frame.
  package let frame: PhysicalAddress
  /// An address that executes it.
  package let executableAt: VirtualAddress
  /// An address that writes it; nil when the frame is one of the tables.
  package let writableAt: VirtualAddress?
}

extension PageMap {
  /// Finds a frame that one mapping permits to write and another, or the same, to execute, or a table that can be
  /// executed. Returns nil when there is none.
  ///
  /// Two passes over all runs for each 16 extents of executable memory: a kernel has one.
  package func proveWriteXorExecute() -> WriteExecuteViolation? {
    var at: UInt64? = 0
    while at != nil {
      // Executable memory in up to 16 extents, each with an address that executes it.
      var starts: InlineArray<16, UInt64> = .init(repeating: 0)
      var ends: InlineArray<16, UInt64> = .init(repeating: 0)
      var addresses: InlineArray<16, UInt64> = .init(repeating: 0)
      var count = 0
      while let address = at, count < 16 {
        let (run, next) = withTree { $0.nextRun(from: address) }
        at = next
        guard let run, run.protection.contains(.executable) else { continue }
        let end = run.physical.rawValue + run.count.bytes.rawValue
        if count > 0, ends[count - 1] == run.physical.rawValue,
          addresses[count - 1] + (ends[count - 1] - starts[count - 1]) == run.address.rawValue
        {
          ends[count - 1] = end
          continue
        }
        starts[count] = run.physical.rawValue
        ends[count] = end
        addresses[count] = run.address.rawValue
        count += 1
      }
      var found: WriteExecuteViolation?
      func compare(_ start: UInt64, _ end: UInt64, writableAt: UInt64?) {
        for i in 0..<count where found == nil && start < ends[i] && starts[i] < end {
          let frame = max(start, starts[i])
          found = WriteExecuteViolation(
            frame: PhysicalAddress(frame),
            executableAt: VirtualAddress(addresses[i] + (frame - starts[i])),
            writableAt: writableAt.map { VirtualAddress($0 + (frame - start)) })
        }
      }
      forEachRun { run in
        guard run.protection.contains(.writable) else { return }
        let start = run.physical.rawValue
        compare(start, start + run.count.bytes.rawValue, writableAt: run.address.rawValue)
      }
      forEachTable { frame, _ in
        compare(frame.address.rawValue, frame.address.rawValue + Page.size, writableAt: nil)
      }
      if found != nil { return found }
    }
    return nil
  }
}
