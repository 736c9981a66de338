import MemoryPrimitives
extension Console {
  func pagetable(_ a: Arguments) throws(CommandError) {}
  func vmem(_ a: Arguments) throws(CommandError) {}
  func kmem() throws(CommandError) {}
  func vmstat(_ a: Arguments) throws(CommandError) {}
  func whatis(_ a: Arguments) throws(CommandError) {}
  func failures() throws(CommandError) {}
  func selftest(_ a: Arguments) throws(CommandError) {}
  func replay(_ a: Arguments) throws(CommandError) {}
  func forEachSelfTestName(_ body: (StaticString) -> Void) {}
  func forEachArenaName(_ body: (Name) -> Void) {}
}
