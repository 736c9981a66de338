// Tab: completes the word at the cursor. A command in front; behind it the words that the command takes.

import KernelMemory
import MemoryPrimitives
import Workloads

/// The words that Tab offers behind a command.
enum Completion {
  case none
  /// Fixed words, with blanks between them.
  case words(StaticString)
  /// Names that the system has at the moment.
  case names(of: NameSource)

  enum NameSource: UInt8 { case commands, statistics, faults, snapshots, benches, objects, selfTests, arenas }
}

extension Shell {
  /// Inserts a byte while the line has space: a line that the user did not overfill is not refused for it.
  private func complete(with byte: UInt8) {
    if state.pointee.editor.count < LineEditor.capacity { state.pointee.editor.insert(byte) }
  }

  /// Completes the word at the cursor: a command in front, behind it what that command takes.
  func complete() {
    let start = state.pointee.editor.wordStart
    let length = state.pointee.editor.cursor - start
    guard length < 64 else { return }
    var typed = InlineArray<64, UInt8>(repeating: 0)
    for i in 0..<length { typed[i] = state.pointee.editor.byte(start + i) }
    var common = InlineArray<64, UInt8>(repeating: 0)
    var commonLength = -1
    var found = 0
    forEachCandidate(at: start) { name in
      guard name.count >= length, name.count < 64 else { return }
      for i in 0..<length where name[i] != typed[i] { return }
      found += 1
      if commonLength < 0 {
        commonLength = name.count
        for i in 0..<name.count { common[i] = name[i] }
      } else {
        var same = 0
        while same < min(commonLength, name.count) && common[same] == name[same] { same += 1 }
        commonLength = same
      }
    }
    if found == 0 { return }
    if commonLength > length {
      for i in length..<commonLength { complete(with: common[i]) }
    }
    if found == 1 { complete(with: UInt8(ascii: " ")) }
    if found == 1 || commonLength > length {
      state.pointee.editor.show(terminal)
      return
    }
    // Nothing to add: show what there is to choose from.
    newline()
    beginPage()
    var line = Line()
    forEachCandidate(at: start) { name in
      guard name.count >= length, name.count < 64 else { return }
      for i in 0..<length where name[i] != typed[i] { return }
      if line.count + 2 + name.count > min(width, 300) {
        print(line)
        line = Line()
      }
      if line.count > 0 { line.append("  ") }
      line.append(bytes: name)
    }
    if line.count > 0 { print(line) }
    state.pointee.stopped = false
    terminal.write(Line(Self.prompt))
    state.pointee.editor.showAgain(terminal)
  }

  /// Calls `body` with each word that may stand at `start` of the line.
  private func forEachCandidate(at start: Int, _ body: (Bytes) -> Void) {
    let first = firstWord(before: start)
    guard first.count > 0 else { return forEachName(of: .commands, body) }
    switch first.withBytes({ Command.named($0) })?.description.completion {
    case nil, .some(.none): return
    case .words(let words): forEachWord(of: words, body)
    case .names(let source): forEachName(of: source, body)
    }
  }

  private func forEachName(of source: Completion.NameSource, _ body: (Bytes) -> Void) {
    func word(_ text: StaticString) { body(Bytes(start: text.utf8Start, count: text.utf8CodeUnitCount)) }
    switch source {
    case .commands: Command.forEach { word($0.description.name) }
    case .statistics:
      let statistics = memory.statistics
      for i in 0..<statistics.count { word(statistics[i].name) }
    case .faults: Fault.forEach { word($0.name) }
    case .snapshots: forEachSnapshotName { name in ("\(name)" as Line).withBytes { body($0) } }
    case .benches: KernelBench.forEach { word($0.name) }
    case .objects: forEachObjectNumber { number in number.withBytes { body($0) } }
    case .selfTests: SelfTest.forEach { word($0.name) }
    case .arenas: forEachArenaName { name in ("\(name)" as Line).withBytes { body($0) } }
    }
  }

  /// The first word of the line being edited, if it ends before `end`; at most 16 bytes of it.
  private func firstWord(before end: Int) -> Line {
    var word = Line()
    var i = 0
    while i < end && state.pointee.editor.byte(i) == UInt8(ascii: " ") { i += 1 }
    while i < end && word.count < 16 && state.pointee.editor.byte(i) != UInt8(ascii: " ") {
      word.append(byte: state.pointee.editor.byte(i))
      i += 1
    }
    return word
  }
}
