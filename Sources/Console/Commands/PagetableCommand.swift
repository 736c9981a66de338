// pagetable: the walk of one address through the page tables, or all mappings.

import KernelSpace
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Vmem

extension CommandDescription {
  static var pagetable: CommandDescription {
    CommandDescription(
      name: "pagetable", usage: "pagetable [ADDRESS] [-a]",
      about: """
        The walk of a virtual address through the page tables, entry by entry;
        without one, what is mapped where and how: a pageable range in a row,
        with -a each of its pages.
        """,
      example: "pagetable 0xffff_ffff_8000_0000", question: .thing, entry: "pagetable ADDRESS")
  }
}

extension Shell {
  func pagetable(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.next() else {
      try arguments.end()
      mappings()
      return
    }
    let address = VirtualAddress(try arguments.address(word))
    try arguments.end()
    let table = table("pagetable")
    table.column("level", .figure)
    table.column("index", .figure)
    table.column("entry at", .exact, key: "entry_at")
    table.column("says", .text)
    var levels = 0
    memory.pageTables.walk(address) { step in
      levels += 1
      table.begin()
      table.plain(UInt64(step.level.rawValue))
      table.plain(UInt64(step.index))
      table.text(physicalAddress(step.entryAddress))
      let (says, marks) = describe(step)
      if isJSON {
        table.text("\(says)\(marks)")
      } else {
        table.text(says)
        if marks.count > 0 {
          // The rest of a long leaf goes below.
          table.end()
          table.begin()
          for _ in 0..<3 { table.empty() }
          var rest = Line("          ")
          for i in 2..<marks.count { rest.append(byte: marks[i]) }
          table.text(rest)
        }
      }
      table.end()
    }
    guard levels > 0 else {
      throw refuse(word, "not a valid address: bits 47 to 63 must be alike")
    }
    table.finish()
    guard let translation = memory.pageTables.translate(address) else {
      print("Nothing is mapped there: an access raises a page fault.")
      return
    }
    let frame = translation.physical.frame
    let role =
      ramDisk(translation.physical.rawValue) == nil ? physical.whatIs(frame).role.description : "the RAM disk"
    print(
      "Physical \(physicalAddress(translation.physical)), frame \(frame): \(role); whatis names the owner.")
  }

  /// Describes an entry, and for a leaf its cache attribute and its accessed and dirty bits.
  private func describe(_ step: WalkStep) -> (Line, Line) {
    let entry = step.entry
    if entry.isTable(at: step.level) {
      return ("table at \(physicalAddress(entry.address(at: step.level)))", Line())
    }
    let isWindow = entry.isWindow(at: step.level)
    guard entry.isPresent else {
      return (isWindow ? "not present: a page window, closed" : "not present", Line())
    }
    let says: Line =
      "leaf of \(step.level.span.bytes) at \(physicalAddress(entry.address(at: step.level))), \(rights(entry.protection))"
    var marks: Line = ", \(entry.attribute(at: step.level).description)"
    if entry.isGlobal { marks.append(", global") }
    if entry.isAccessed { marks.append(", accessed") }
    if entry.isDirty { marks.append(", dirty") }
    if isWindow { marks.append(", page window") }
    return (says, marks)
  }

  /// The accesses that a protection permits besides reading.
  func rights(_ protection: Protection) -> StaticString {
    if protection.contains(.writable) {
      return protection.contains(.executable) ? "read-write-execute" : "read-write"
    }
    return protection.contains(.executable) ? "read-execute" : "read-only"
  }

  /// All mappings: neighbours of one kind share a row. The pages of a pageable range lie anywhere, so a range is one
  /// row too, unless `-a` was given.
  private func mappings() {
    let tables = memory.pageTables
    let table = table("mapping")
    table.column("from", .exact)
    table.column("size", .sum, key: "bytes")
    table.column("to", .exact)
    table.column("leaf", .figure, key: "leaf_bytes")
    table.column("rights", .text)
    table.column("cached", .text)
    var rows = MappingRows(self, table)
    tables.forEachRun { rows.add($0) }
    rows.finish()
    table.finish(total: "all mappings")
    if !showsAll && memory.paging.figures.ranges > 0 {
      print("A pageable range counts the pages that are mapped now; -a lists each page.")
    }
    let (small, middle, large) = (
      tables.leafCount(.pages), tables.leafCount(.mebibytes2), tables.leafCount(.gibibytes)
    )
    print(
      "\(count: tables.tableCount.rawValue, "table"); leaves: \(count: small.rawValue) of 4 KiB, \(count: middle.rawValue) of 2 MiB, \(count: large.rawValue) of 1 GiB"
    )
    if let violation = tables.proveWriteXorExecute() {
      print(
        "! \(physicalAddress(violation.frame)) can be written and executed. Type: pagetable \(violation.executableAt)"
      )
    } else {
      print("No frame can be written through one mapping and executed through another.")
    }
  }

  /// Merges runs of mappings into rows of a table: the neighbours of one kind, and the pages of a pageable range.
  private struct MappingRows {
    private let console: Shell
    private let table: Table
    private var last: MappedRun?
    private var pageable: PageableRange?
    /// Pages of `pageable` that are mapped.
    private var mapped = PageCount.zero

    init(_ console: Shell, _ table: Table) { (self.console, self.table) = (console, table) }

    mutating func add(_ run: MappedRun) {
      if isPageable(run) { return show() }
      if var before = last, before.level == run.level, before.protection == run.protection,
        before.attribute == run.attribute,
        before.address.rawValue &+ before.count.bytes.rawValue == run.address.rawValue,
        before.physical.rawValue &+ before.count.bytes.rawValue == run.physical.rawValue
      {
        before.count = before.count + run.count
        last = before
        return
      }
      show()
      last = run
    }

    mutating func finish() {
      show()
      showPageable()
    }

    private mutating func showPageable() {
      guard let range = pageable else { return }
      table.begin()
      table.text("\(range.address)")
      table.size(mapped.bytes)
      if console.isJSON { table.none() } else { table.text("object \(UInt64(range.object))") }
      table.size(TableLevel.pages.span.bytes)
      table.text(console.rights(range.protection))
      table.text("pageable")
      table.end()
      pageable = nil
    }

    /// Counts a run that is a part of a pageable range. False when it is none, or when each page is to be shown.
    private mutating func isPageable(_ run: MappedRun) -> Bool {
      if console.showsAll { return false }
      if let range = pageable {
        if run.address.rawValue - range.address.rawValue < range.count.bytes.rawValue {
          mapped = mapped + run.count
          return true
        }
        showPageable()
      }
      guard let range = console.memory.paging.range(endingFrom: run.address), range.address <= run.address
      else { return false }
      (pageable, mapped) = (range, run.count)
      return true
    }

    private mutating func show() {
      guard let run = last else { return }
      table.begin()
      table.text("\(run.address)")
      table.size(run.count.bytes)
      table.text(console.physicalAddress(run.physical))
      table.size(run.level.span.bytes)
      table.text(console.rights(run.protection))
      table.text(run.attribute.description)
      table.end()
      last = nil
    }
  }
}
