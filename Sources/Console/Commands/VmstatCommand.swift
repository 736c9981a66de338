// vmstat: memory by type and caches, in the columns of vmstat(8).
//
// Without an option it prints the columns of FreeBSD's; -m and -z those of FreeBSD, -C those that NetBSD's has for the
// caches of objects. A column that the others have and Strata can't know is left out, never invented.

import Kmem
import KernelSpace
import KernelMemory
import MemoryPrimitives
import PhysicalMemory

extension CommandDescription {
  static var vmstat: CommandDescription {
    CommandDescription(
      name: "vmstat", usage: "vmstat [-m | -z | -C]",
      about: """
        What vmstat(8) prints: memory and paging since boot, -m memory by type,
        -z caches, -C how magazines serve each cache. Columns, order and units
        are those that scripts know. HighUse is the highest sample.
        """,
      example: "vmstat -m", question: .use, entry: "vmstat -m|-z|-C",
      completion: .words("-m -z -C"))
  }
}

extension Shell {
  /// The columns, order and units of vmstat(8), for scripts that know them.
  func vmstat(_ arguments: Arguments) throws(CommandError) {
    let byType = arguments.takeFlag("-m")
    let byCache = arguments.takeFlag("-z")
    let byMagazines = arguments.takeFlag("-C")
    try arguments.end()
    switch (byType, byCache, byMagazines) {
    case (false, false, false): pages()
    case (true, false, false): types()
    case (false, true, false): caches()
    case (false, false, true): magazines()
    default: throw refuse("vmstat takes one of -m (types), -z (caches) and -C (magazines).")
    }
  }

  /// A figure of a script's column, right-aligned.
  private func figure(_ value: UInt64, _ width: Int) -> Line { "\(right: "\(value)", width)" }
  private func kibibytes(_ bytes: ByteCount) -> Line { "\((bytes.rawValue + 1023) / 1024)K" }

  private func pages() {
    func value(_ name: StaticString) -> UInt64 { statistics.value(of: name) ?? 0 }
    let free = value("vm.frames.free") * 4
    let active = value("vm.frames.pageable") * 4
    row("vmstat") { row in
      row.field("pageable_kib", active)
      row.field("free_kib", free)
      row.field("faults", value("vm.faults"))
      row.field("reactivations", value("vm.reactivations"))
      row.field("page_ins", value("vm.swap.reads"))
      row.field("page_outs", value("vm.swap.writes"))
      row.field("reclaimed", value("vm.pages.reclaimed"))
      row.field("scanned", value("vm.daemon.scanned"))
      row.field("waits", value("vm.waits"))
    }
    print("   memory                 page                                             wait")
    print("      avm       fre      flt     re      pi      po      fr       sr")
    var line: Line = "\(figure(active, 9)) \(figure(free, 9))"
    line.append(line: " \(figure(value("vm.faults"), 8)) \(figure(value("vm.reactivations"), 6))")
    line.append(line: " \(figure(value("vm.swap.reads"), 7)) \(figure(value("vm.swap.writes"), 7))")
    line.append(line: " \(figure(value("vm.pages.reclaimed"), 7)) \(figure(value("vm.daemon.scanned"), 8))")
    line.append(line: " \(figure(value("vm.waits"), 6))")
    print(line)
  }

  private func types() {
    print("         Type InUse MemUse HighUse Requests  Size(s)")
    memory.kmem.forEachTypeToken { type in
      let figures = memory.kmem.describe(type)
      guard figures.requests > 0 || showsEverything else { return }
      var sizes = Line()
      memory.kmem.forEachSize(of: type) { size, _, _ in
        if sizes.count > 0 { sizes.append(",") }
        if let size { sizes.append(decimal: size.rawValue) } else { sizes.append("large") }
      }
      row("type") { row in
        row.field("type", text: "\(figures.name)")
        row.field("in_use", figures.inUse)
        row.field("bytes", figures.bytes.rawValue)
        row.field("high_bytes", figures.peakBytes.rawValue)
        row.field("requests", figures.requests)
        row.field("failed", figures.failed)
        row.field("limit", figures.limit?.rawValue)
        row.field("sleeps", figures.waits)
        row.field("sizes", text: sizes)
      }
      var line: Line = "\(right: "\(figures.name)", 13) \(right: "\(figures.inUse)", 5)"
      line.append(line: " \(right: kibibytes(figures.bytes), 6) \(right: kibibytes(figures.peakBytes), 7)")
      line.append(line: " \(right: "\(figures.requests)", 8)  ")
      // As many sizes as fit the line; -j prints all of them.
      var shown = sizes
      if line.count + shown.count > width {
        shown.truncate(to: width - line.count - 3)
        while shown.count > 0 && shown[shown.count - 1] != UInt8(ascii: ",") {
          shown.truncate(to: shown.count - 1)
        }
        shown.append("...")
      }
      line.append(line: shown)
      print(line)
    }
  }

  private func caches() {
    print("ITEM                   SIZE  LIMIT     USED     FREE      REQ     FAIL SLEEP")
    memory.kmem.forEachCache { cache in
      guard cache.requests > 0 || cache.slabs > 0 || showsEverything else { return }
      row("zone") { row in
        row.field("item", text: "\(cache.name)")
        row.field("size", cache.objectSize.rawValue)
        row.field("limit", cache.limit ?? 0)
        row.field("used", cache.inUse)
        row.field("free", cache.free)
        row.field("requests", cache.requests)
        row.field("failed", cache.failed)
        row.field("sleeps", cache.waits)
        row.field("peak", cache.peak)
        row.field("rounded_bytes", cache.roundedBytes.rawValue)
      }
      var name: Line = "\(cache.name)"
      name.truncate(to: 19)
      name.append(":")
      var line: Line = "\(left: name, 20)"
      line.append(line: "\(figure(cache.objectSize.rawValue, 7)),\(figure(cache.limit ?? 0, 7)),")
      line.append(line: "\(figure(cache.inUse, 8)),\(figure(cache.free, 8)),")
      line.append(line: "\(figure(cache.requests, 8)),\(figure(cache.failed, 8)),\(figure(cache.waits, 4))")
      print(line)
    }
  }

  private func magazines() {
    print("Name                 GrpSz  Mags   Requests  Exchanges    Refills     Spills  Hit%")
    memory.kmem.forEachCache { cache in
      guard cache.requests > 0 || showsEverything else { return }
      let slow = cache.exchanges + cache.refills
      let hits = cache.requests - min(cache.requests, slow)
      row("magazines") { row in
        row.field("name", text: "\(cache.name)")
        row.field("rounds", cache.magazineRounds)
        row.field("magazines", cache.magazines)
        row.field("requests", cache.requests)
        row.field("exchanges", cache.exchanges)
        row.field("refills", cache.refills)
        row.field("spills", cache.spills)
      }
      var name: Line = "\(cache.name)"
      name.truncate(to: 20)
      var line: Line = "\(left: name, 20) \(figure(cache.magazineRounds, 5)) \(figure(cache.magazines, 5))"
      line.append(line: " \(figure(cache.requests, 10)) \(figure(cache.exchanges, 10))")
      line.append(line: " \(figure(cache.refills, 10)) \(figure(cache.spills, 10))")
      // Without magazines, none is served by them.
      let share: Line = cache.magazines == 0 || cache.requests == 0 ? "-" : "\(hits * 100 / cache.requests)"
      line.append(line: " \(right: share, 5)")
      print(line)
    }
  }
}
