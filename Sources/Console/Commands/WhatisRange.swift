// whatis, of a range: the runs of frames with one owner.

import KernelMemory
import MemoryPrimitives
import PageTables
import PhysicalMemory

extension Shell {
  /// `frames A to B`, as `why` and `contig` print it.
  func whatisFrames(_ arguments: Arguments) throws(CommandError) {
    let usage: Line = "The first and the last frame are needed, as in: whatis frames 256 to 767"
    guard let from = arguments.nextOfAnyForm() else { throw refuse(usage) }
    let first = try frame(from, arguments)
    guard let to = arguments.nextOfAnyForm() else { throw refuse(usage) }
    guard to.bytes == "to" else { throw refuse(to, "\"to\" stands here, as in: whatis frames 256 to 767") }
    guard let until = arguments.nextOfAnyForm() else { throw refuse(usage) }
    let last = try frame(until, arguments)
    try arguments.end()
    guard last >= first else { throw refuse(until, "the last frame is below the first") }
    printOwners(first, last + 1)
  }

  private func frame(_ word: Word, _ arguments: Arguments) throws(CommandError) -> UInt64 {
    let value = try arguments.number(word)
    guard value < UInt64(memory.map.end.rawValue) else {
      throw refuse(word, "no frame: the last one is \(memory.map.end.rawValue - 1)")
    }
    return value
  }

  /// `ADDRESS+SIZE`, physical or virtual.
  func whatisRange(_ word: Word, _ arguments: Arguments) throws(CommandError) {
    let (start, length) = try arguments.range(word, length: nil)
    try arguments.end()
    let end = UInt64(memory.map.end.rawValue) << Page.shift
    let base = memory.machine.directMap.base
    let isDirect = start >= base && start - base < end
    let physical = isDirect ? start - base : start
    guard physical < end else {
      print("The range begins there; whatis ADDRESS+SIZE lists the owners of frames.")
      return try whatis(word, start)
    }
    let last = min(end - 1, physical + (length.rawValue - 1))
    printOwners(physical >> Page.shift, last >> Page.shift + 1)
  }

  /// Prints the runs of frames `first` to `end` that have one role and one owner.
  private func printOwners(_ first: UInt64, _ end: UInt64) {
    let start = physicalAddress(FrameNumber(UInt32(first)))
    let size = PageCount(end - first)
    print("\(count: size.rawValue, "frame"), \(start)+\(RunAsked.spelled(size.bytes)), by owner:")
    let table = table("owned_frames", .asGiven)
    table.column("frame", .figure, key: "first_frame")
    table.column("frames", .sum)
    table.column("role", .text)
    table.column("owner", .text)
    table.column("type", .text, for: .tools)
    table.column("site", .text, for: .tools)
    var at = first
    while at < end && !shouldStop {
      let run = ownedRun(at, end)
      add(run.frames, run.role, run.owner, to: table)
      at = UInt64(run.frames.end.rawValue)
    }
    if isStopped("Stopped. The list ends before frame \(at).") { return }
    table.finish(total: "all")
    if isStopped("Stopped. The list is not complete.") { return }
    print("whatis frame N describes one of them.")
  }

  private func add(_ run: FrameRun, _ role: FrameRole, _ owner: NamedOwner, to table: Table) {
    table.begin()
    table.plain(UInt64(run.first.rawValue))
    table.count(run.count.rawValue)
    table.text(role.description)
    if let name = owner.name { table.text(name) } else { table.none() }
    if let type = owner.type { table.text(type) } else { table.none() }
    if owner.site == .unknown { table.none() } else { table.text(place(owner.site)) }
    table.end()
  }

  /// The frames from `first` on, before `end`, that have the same role and owner.
  private func ownedRun(_ first: UInt64, _ end: UInt64) -> (
    frames: FrameRun, role: FrameRole, owner: NamedOwner
  ) {
    let frame = FrameNumber(UInt32(first))
    let role = physical.whatIs(frame).role
    let owner = rangeOwner(of: physical.whatIs(frame))
    var at = first + 1
    // A free block and a hole are passed over as a whole.
    if let (last, _) = physical.lastOfBlockOrHole(at: frame) { at = UInt64(last.rawValue) + 1 }
    while at < end {
      let next = physical.whatIs(FrameNumber(UInt32(at)))
      guard next.role == role else { break }
      if role == .free || role == .absent, let (last, _) = physical.lastOfBlockOrHole(at: next.frame) {
        at = UInt64(last.rawValue) + 1
        continue
      }
      guard isSame(rangeOwner(of: next), owner) else { break }
      at += 1
    }
    let count = PageCount(min(at, end) - first)
    return (FrameRun(first: frame, count: count), role, owner)
  }

  /// The owner of a frame; of a page, its object, which many frames of a range may share.
  private func rangeOwner(of frame: FrameDescription) -> NamedOwner {
    if frame.role == .pageable, let page = page(in: frame) {
      return NamedOwner(name: "object \(page.object.title)")
    }
    return owner(of: frame)
  }

  private func isSame(_ a: NamedOwner, _ b: NamedOwner) -> Bool {
    guard a.type == b.type, a.site == b.site else { return false }
    guard let one = a.name, let other = b.name else { return a.name == nil && b.name == nil }
    guard one.count == other.count else { return false }
    for i in 0..<one.count where one[i] != other[i] { return false }
    return true
  }
}
