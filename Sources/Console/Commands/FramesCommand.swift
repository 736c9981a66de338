// frames: the count of frames in each role.

import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension CommandDescription {
  static var frames: CommandDescription {
    CommandDescription(
      name: "frames", usage: "frames [-a]",
      about: """
        Every frame has one role: the count of each. The total is what memmap
        took.
        """,
      example: "frames", question: .use,
      synonyms: "free",
      arguments: .none)
  }
}

extension Shell {
  func frames() throws(CommandError) {
    let total = physical.total.rawValue
    let table = table("frames", .largestFirst)
    table.column("role", .text)
    table.column("frames", .sum)
    table.column("size", .sum, key: "bytes")
    table.column("share", .share)
    table.column("", .bar)
    var sum: UInt64 = 0
    for value in 0..<FrameRole.count {
      guard let role = FrameRole(rawValue: UInt8(value)), role != .absent else { continue }
      let count = physical.count(role)
      sum += count.rawValue
      table.begin(weight: count.rawValue)
      table.text(role.description)
      table.count(count.rawValue)
      table.size(count.bytes)
      table.share(count.rawValue, of: total)
      table.share(count.rawValue, of: total)
      table.end()
    }
    table.finish(total: "all roles", note: sum == total ? "as memmap took them" : Line())
    let cached = physical.cachedCount
    report("cached") { report in
      report.write(
        "Cached pages among the free ones: \(key: "pages", count: cached.rawValue). A fault reactivates one without I/O.",
        if: cached > .zero)
      report.keep("\(key: "bytes_cached", only: cached.bytes.rawValue)")
    }
    if sum != total {
      print("! memmap took \(count: total): a frame is counted twice or not at all. Type: selftest")
    }
  }
}
