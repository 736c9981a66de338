// whatis: everything known about one address, layer by layer, from the object to the frame.

import CPlatform
import KernelSpace
import Kmem
import Magazines
import KernelMemory
import MemoryPrimitives
import PageTables
import Paging
import PhysicalMemory
import Vmem

extension CommandDescription {
  static var whatis: CommandDescription {
    CommandDescription(
      name: "whatis", usage: "whatis ADDRESS | RANGE | frame N",
      about: """
        Everything known about an address or a frame, layer by layer. Takes
        any address as it is printed, virtual or physical. Of a range, the
        owners of its frames: whatis ADDRESS+SIZE, or frames A to B.
        """,
      example: "whatis frame 300", question: .thing, entry: "whatis ADDRESS",
      completion: .words("frame frames"))
  }
}

extension Shell {

  func whatis(_ arguments: Arguments) throws(CommandError) {
    guard let word = arguments.nextOfAnyForm() else {
      throw refuse("An address is missing; usage: \(arguments.usage). It may be virtual or physical.")
    }
    if word.bytes == "frame" {
      guard let number = arguments.nextOfAnyForm() else {
        throw refuse("A frame number is missing, as in: whatis frame 300")
      }
      let value = try arguments.number(number)
      try arguments.end()
      guard value < UInt64(memory.map.end.rawValue) else {
        throw refuse(number, "no frame: the last one is \(memory.map.end.rawValue - 1)")
      }
      printPhysical(PhysicalAddress(value << Page.shift))
      return
    }
    if word.bytes == "frames" { return try whatisFrames(arguments) }
    if word.bytes.firstIndex(of: UInt8(ascii: "+")) != nil { return try whatisRange(word, arguments) }
    var isDecimal = true
    for byte in word.bytes where byte < UInt8(ascii: "0") || byte > UInt8(ascii: "9") { isDecimal = false }
    if isDecimal && word.bytes.count > 1 {
      throw refuse(word, "an address begins with 0x; a frame is: whatis frame \(word.line)")
    }
    let value = try arguments.address(word)
    try arguments.end()
    try whatis(word, value)
  }

  /// Prints what is known about an address, which `word` names.
  func whatis(_ word: Word, _ value: UInt64) throws(CommandError) {
    let end = UInt64(memory.map.end.rawValue) << Page.shift
    let base = memory.machine.directMap.base
    if let disk = ramDisk(value) ?? (value >= base ? ramDisk(value - base) : nil) {
      printRamDisk(disk, value >= base ? value - base : value)
    } else if value >= base && value - base < end {
      printDirect(VirtualAddress(value))
    } else if value < end {
      printPhysical(PhysicalAddress(value))
    } else if value >> 47 == 0 {
      if let range = firmwareRange(of: value) {
        nothing("\(range) of the firmware's map, behind the end of memory")
      } else {
        nothing("Nothing: no memory has this physical address, and nothing is mapped in the lower half.")
      }
    } else if value >> 47 != 0x1ffff {
      throw refuse(word, "not a valid address: bits 47 to 63 must be alike")
    } else {
      printVirtual(VirtualAddress(value))
    }
  }

  /// Prints the answer, before the evidence. With `-j` only the evidence is printed.
  func answer(_ line: Line) {
    print(line)
  }

  /// Prints the answer where there is no evidence.
  private func nothing(_ line: Line) {
    row("nothing") { $0.field("what", text: line) }
    print(line)
  }

  /// Prints one line of evidence: a label, a name, and the facts on it.
  func fact(_ label: StaticString, _ thing: Line, _ text: Line) {
    var line: Line = "  \(label)"
    line.append(blanks: max(1, 13 - line.count))
    line.append(line: thing)
    if text.count > 0 {
      line.append(blanks: max(2, 34 - line.count))
      line.append(line: text)
    }
    if line.count <= width {
      print(line)
      return
    }
    // Too long for a line, so the facts go below the name.
    line = "  \(label)"
    line.append(blanks: max(1, 13 - line.count))
    line.append(line: thing)
    print(line)
    line = Line()
    line.append(blanks: 13)
    line.append(line: text)
    print(line)
  }

  // MARK: Virtual

  private func printDirect(_ address: VirtualAddress) {
    guard memory.pageTables.translate(address) != nil else {
      nothing("An address of the direct map behind which there is no memory.")
      return
    }
    printPhysical(PhysicalAddress(address.rawValue - memory.machine.directMap.base), through: address)
  }

  private func printVirtual(_ address: VirtualAddress) {
    if let name = code(address) {
      answer("The kernel's code: \(name)")
      printMapping(address)
      return
    }
    if let place = memory.pageTables.windows.place(of: address) { return printWindow(place, address) }
    let known = memory.space.whatIs(address)
    if known.region == .elsewhere {
      if known.translation != nil {
        answer("A part of the kernel's image.")
        printMapping(address)
        if let translation = known.translation { printFrame(translation.physical.frame) }
      } else {
        nothing("Nothing: no region of the kernel lies there, and nothing is mapped.")
      }
      return
    }
    let found = known.kind == .pageable ? pageableRange(at: address) : nil
    if let range = known.range, let kind = known.kind {
      if let found {
        answer(found.page.answer(at: address))
      } else if let entry = known.translation.flatMap({ contigEntry(holding: $0.physical.frame) }) {
        answer("\(ByteCount(address.rawValue - range.address.rawValue)) into contig \(entry.id).")
      } else {
        answer(
          "\(ByteCount(address.rawValue - range.address.rawValue)) into \(range.count.bytes) of \(kind.description)"
        )
      }
      row("address_range") { row in
        row.field("address", range.address)
        row.field("offset", address.rawValue - range.address.rawValue)
        row.field("frames", range.count.rawValue)
        row.field("use", text: Line(kind.description))
        row.field("rights", text: found.map { Line(rights($0.range.protection)) })
      }
      var what: Line = "\(count: range.count.rawValue, "page"), \(kind.description)"
      if let found { what.append(line: ", \(rights(found.range.protection))") }
      fact("range", place(address, in: range.address), what)
      if let found { printPage(found.page, besides: address) }
    } else if let segment = known.segment, segment.kind == .free {
      answer("An address of \(known.region.description) that is not allocated.")
    } else if known.segment != nil {
      answer("An address of \(known.region.description) that is allocated and not mapped: a guard page.")
    } else {
      answer("An address of \(known.region.description), in no arena.")
    }
    if let segment = known.segment, let arena = known.arena { printSegment(segment, of: arena, at: address) }
    guard let found else {
      printMapping(address)
      if let translation = known.translation { printFrame(translation.physical.frame) }
      return
    }
    printMapping(address, unmapped: "a page fault maps it")
    if let frame = found.page.facts.description.frame { printFrame(frame) }
  }

  /// Prints a page window, which maps two frames while it is open.
  private func printWindow(_ place: WindowPlace, _ address: VirtualAddress) {
    let translation = memory.pageTables.translate(address)
    var words: Line = "An address of "
    words.append(line: place.description)
    if place.part != .behind {
      words.append(translation == nil ? ": closed." : ": open.")
    } else {
      words.append(".")
    }
    answer(words)
    row("page_window") { row in
      row.field("address", address)
      row.field("cpu", UInt64(place.processor.rawValue))
      row.field("depth", text: Line(place.depth.description))
      row.field("open", truth: translation == nil ? .no : .yes)
    }
    printMapping(address)
    if let translation { printFrame(translation.physical.frame) }
  }

  /// Prints the segment of `arena` that holds an address.
  private func printSegment(_ segment: Segment, of arena: ShortName, at address: VirtualAddress) {
    row("arena_segment") { row in
      row.field("arena", text: "\(arena)")
      row.field("address", VirtualAddress(segment.first.rawValue))
      row.field("offset", address.rawValue - segment.first.rawValue)
      row.field("bytes", segment.size.rawValue)
      row.field("in_use", truth: segment.kind == .busy ? .yes : .no)
      row.field("site", text: segment.allocatedAt == .unknown ? nil : place(segment.allocatedAt))
    }
    let state: StaticString = segment.kind == .busy ? "in use" : "free"
    fact(
      "segment",
      segment.kind == .busy
        ? place(address, in: VirtualAddress(segment.first.rawValue))
        : "\(VirtualAddress(segment.first.rawValue))",
      "\(ByteCount(segment.size.rawValue)) of \(arena), \(state)")
    if segment.allocatedAt != .unknown { fact("requested by", place(segment.allocatedAt), Line()) }
  }

  /// The start of a range, and how far behind it an address lies.
  private func place(_ address: VirtualAddress, in start: VirtualAddress) -> Line {
    var place: Line = "\(start)"
    if address > start {
      place.append(" +")
      place.append(offset: address.rawValue - start.rawValue)
    }
    return place
  }

  private func printMapping(
    _ address: VirtualAddress, of name: Line? = nil, unmapped: Line = "an access raises a page fault"
  ) {
    let translation = memory.pageTables.translate(address)
    row("translation") { row in
      row.field("address", address)
      row.field("physical", text: translation.map { physicalAddress($0.physical) })
      row.field("leaf_bytes", translation?.level.span.bytes.rawValue)
      row.field("rights", text: translation.map { Line(rights($0.protection)) })
      row.field("cached", text: translation.map { Line($0.attribute.description) })
    }
    guard let translation else {
      fact("mapping", "none", unmapped)
      return
    }
    fact(
      "mapping", name ?? "to \(physicalAddress(translation.physical))",
      "leaf of \(translation.level.span.bytes), \(rights(translation.protection)), \(translation.attribute.description)"
    )
  }

  // MARK: Physical

  private func printPhysical(_ address: PhysicalAddress, through given: VirtualAddress? = nil) {
    let direct = memory.machine.directMap.virtualAddress(of: address)
    let description = physical.whatIs(address.frame)
    if description.role == .slab, let object = memory.kmem.whatIs(direct) {
      printObject(object)
    } else {
      switch description.role {
      case .absent:
        if let range = firmwareRange(of: address.rawValue) {
          nothing("\(range) of the firmware's map: Strata does not use it.")
        } else {
          nothing("No memory: a hole of the firmware's map.")
        }
        return
      case .free:
        if let page = page(in: description) {
          answer("Free memory, and a cached page: \(page.name).")
          printPage(page)
        } else {
          answer("Free memory.")
        }
      case .pageable:
        if let page = page(in: description) {
          answer(page.answer(at: given ?? direct))
          printPage(page)
        } else {
          answer("A page that is being brought in, moved or freed.")
        }
      case .zspage: printZspage(address)
      case .bootModule: answer("\(ByteCount(address.rawValue - moduleStart(address))) into the boot module.")
      case .contiguous:
        if let entry = contigEntry(holding: address.frame) {
          let offset = ByteCount(address.rawValue - entry.range.frames.first.address.rawValue)
          answer("\(offset) into contig \(entry.id).")
        } else {
          answer("Contiguous memory that the console has not allocated.")
        }
      default:
        if address.offsetInPage == 0 {
          answer("A frame with the role \(description.role.description).")
        } else {
          answer(
            "\(count: address.offsetInPage, "byte") into a frame with the role \(description.role.description)."
          )
        }
      }
    }
    printFrame(address.frame)
    printMapping(given ?? direct, of: "direct map")
  }

  /// The console's run that holds a frame.
  private func printRun(_ frame: FrameNumber) {
    guard let entry = contigEntry(holding: frame) else { return }
    row("contig_run") { fields($0, entry) }
    fact(
      "contig", "\(entry.id) at \(entry.range.address)",
      "\(entry.size) of type \(entry.type.name), \(entry.attribute.description)")
  }

  private func printObject(_ object: ObjectDescription) {
    var standing: Line
    switch object.standing {
    case .inUse: standing = "in use"
    case .freeInSlab: standing = "free in its slab"
    case .inMagazine(.depot): standing = "free in a magazine of the depot"
    case .inMagazine(.processor(let index)): standing = "free in a magazine of cpu \(index.rawValue)"
    case .noObject: standing = "behind the last object of its slab"
    }
    if object.standing == .noObject {
      answer("The end of a slab that holds no object.")
    } else {
      answer(
        "\(count: object.offset.rawValue, "byte") into an object of \(count: object.objectSize.rawValue, "byte"), \(standing)"
      )
    }
    row("kmem_object") { row in
      row.field("address", object.objectStart)
      row.field("offset", object.offset.rawValue)
      row.field("size", object.objectSize.rawValue)
      row.field("cache", text: "\(object.cache)")
      row.field("index", UInt64(object.index))
      row.field("standing", text: standing)
      row.field("slab", object.slabStart)
      row.field("slab_frames", object.frames.rawValue)
      row.field("slab_objects", UInt64(object.objects))
      row.field("slab_out", UInt64(object.out))
      row.field("asked_for", object.audit?.size.rawValue)
      row.field("type", text: object.audit?.type.map { "\($0)" })
      row.field("allocated_at", text: object.audit.map { place($0.allocatedAt) })
      row.field("freed_at", text: object.audit.map { place($0.freedAt) })
    }
    if object.standing != .noObject {
      fact(
        "object", "\(object.objectStart)", "number \(object.index) of 0 to \(object.objects - 1) in its slab")
    }
    var cache = Line()
    if let audit = object.audit {
      if let type = audit.type { cache.append(line: "type \(type), ") }
      cache.append(line: "\(count: audit.size.rawValue, "byte") requested")
    } else if object.standing == .inUse {
      cache.append("no call sites are recorded: sysctl kmem.audit=on")
    }
    fact("cache", "\(object.cache)", cache)
    if let audit = object.audit {
      if audit.allocatedAt != .unknown { fact("allocated", place(audit.allocatedAt), Line()) }
      if audit.freedAt != .unknown { fact("freed", place(audit.freedAt), Line()) }
    }
    fact(
      "slab", "\(object.slabStart)",
      "\(count: object.frames.rawValue, "frame"), \(object.objects - object.out) of \(object.objects) objects free in it"
    )
  }

  private func printFrame(_ frame: FrameNumber) {
    printRun(frame)
    let description = physical.whatIs(frame)
    let owner = owner(of: description)
    row("frame") { row in
      row.field("frame", UInt64(frame.rawValue))
      row.field("address", text: physicalAddress(frame))
      row.field("role", text: Line(description.role.description))
      if let name = owner.name { row.field("owner", text: name) } else { row.none("owner") }
      if let type = owner.type { row.field("type", text: "\(type)") } else { row.none("type") }
      if owner.site == .unknown { row.none("site") } else { row.field("site", text: place(owner.site)) }
      row.field("list", text: Line(description.list.description))
      row.field("wires", UInt64(description.busyWord.wires))
      row.field("holds", UInt64(description.busyWord.holds))
      row.field("section", UInt64(description.section))
      row.field("block", description.block.map { UInt64($0.rawValue) })
      row.field("order", description.blockOrder.map { UInt64($0.rawValue) })
    }
    fact(
      "frame", "\(frame) at \(physicalAddress(frame))",
      "role \(description.role.description), \(description.list.description)")
    printOwner(owner)
    if let block = description.block, let order = description.blockOrder {
      fact(
        "block", "frames \(block) to \(FrameNumber(block.rawValue + UInt32(order.frames.rawValue - 1)))",
        "free, order \(UInt64(order.rawValue)), \(order.frames.bytes)")
    } else if description.role != .absent {
      let busyWord = description.busyWord
      fact(
        "claims", "wired \(UInt64(busyWord.wires)), held \(UInt64(busyWord.holds))",
        Self.description(of: busyWord, description.role))
    }
  }

  private static func description(of busyWord: BusyWord, _ role: FrameRole) -> Line {
    if busyWord.isXbusy { return "busy" }
    if busyWord.sbusyCount > 0 { return "being written out" }
    if role == .zspage { return "could be moved" }
    guard role.isMovable && busyWord.wires == 0 else { return "can't be moved" }
    return busyWord.holds > 0 ? "can't be moved while it is held" : "could be moved"
  }

  /// The run of memory carved out that holds a physical address.
  func ramDisk(_ address: UInt64) -> FrameRun? {
    let carveOut = memory.carveOut
    for i in 0..<carveOut.count {
      let run = carveOut[i]
      let start = run.first.address.rawValue
      if address >= start && address - start < run.count.bytes.rawValue { return run }
    }
    return nil
  }

  private func printRamDisk(_ run: FrameRun, _ address: UInt64) {
    let offset = ByteCount(address - run.first.address.rawValue)
    answer("\(offset) into \(run.count.bytes) of the RAM disk, cut off the top of memory.")
    row("ram_disk") { row in
      row.field("address", text: physicalAddress(run.first))
      row.field("bytes", run.count.bytes.rawValue)
      row.field("offset", offset.rawValue)
    }
    fact("memory", physicalAddress(run.first), "\(count: run.count.rawValue, "frame") without a record")
    printMapping(memory.machine.directMap.virtualAddress(of: PhysicalAddress(address)))
  }

  private func firmwareRange(of address: UInt64) -> Line? {
    let boot = subject.pointee.boot
    for i in 0..<Int(boot.pointee.range_count) {
      let range = cp_boot_ranges(boot)[i]
      if address >= range.base && address - range.base < range.length {
        return "A range of \(ByteCount(range.length)), type \(range.type),"
      }
    }
    return nil
  }

  private func moduleStart(_ address: PhysicalAddress) -> UInt64 {
    let boot = subject.pointee.boot
    for i in 0..<Int(boot.pointee.module_count) {
      let module = cp_boot_modules(boot)[i]
      if address.rawValue >= module.base && address.rawValue - module.base < module.length {
        return module.base
      }
    }
    return address.page
  }
}

extension PhysicalAddress {
  /// The first byte of its frame.
  var page: UInt64 { rawValue & ~(Page.size - 1) }
}
